"""Tests of collect and play: real HTTP, a human and assistants that answer by a script."""

import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import empower
from realcode import corpus
from section5 import client, cost, players
from section5.client import Server, TooLong
from section5.collect import alone, in_parallel, read_lines
from section5.players import PromptedHuman, prompt
from section5.test_scripted import chat, completion, serving
from section5.test_problems import DATA, READS, livecodebench
from simhuman import Episode
from support import cli
from support.cli import UserError
from support.test_helpers import ROOT, family, in_process, published

PROGRAM = "import sys\nprint(sum(map(int, sys.stdin.read().split())))"


def fences(text):
    return re.findall(r"```python\n(.*?)\n?```", text, re.DOTALL)


def plays(path, body):
    """A human who wants PROGRAM, and assistants that know what comes next."""
    if "messages" not in body:  # an assistant's server: the next nine characters
        code = body["prompt"]
        return completion(PROGRAM[len(code):len(code) + 9] if PROGRAM.startswith(code) else "?")
    asked = body["messages"][-1]["content"]
    if "ten random words" in asked:
        return chat(f"seed {body['seed']}")
    if asked.startswith("Write a Python program"):
        return chat(f"Sure!\n```python\n{READS}\n```")
    if "Retype it" in asked:
        [code] = fences(asked)[-1:]
        return chat(f"```python\n{PROGRAM[:len(code) + 5]}\n```")
    if "suggestion" in asked:
        code, both = fences(asked)
        return chat("It fits.\nACCEPT" if PROGRAM.startswith(both) else "No.\nREJECT")
    [code] = fences(asked)
    rest = PROGRAM[len(code):]
    return chat(f"```python\n{rest}\n```" if rest else "DONE")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "PAUSE", 0.001)
    monkeypatch.delenv(client.KEY, raising=False)


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(livecodebench(question_id=f"p{k}")) + "\n"
                            for k in range(3)))
    return path


def run(command, *arguments):
    status, out, err = in_process(command, *arguments)
    assert status == 0, err
    return out


def test_collect_keeps_every_program_and_goes_on(problems, tmp_path):
    out = tmp_path / "programs.jsonl"
    with serving(plays) as (url, script):
        said = run("collect", "--problems", problems, "--human", url, "--out", out, "--limit", 2)
        assert "attempts 2 problems of 2" in said and "2 programs of these problems" in said
        with open(out, "a") as file:
            file.write('{"id": "p2", "stat')  # a kill in the middle of a line
        said = run("collect", "--problems", problems, "--human", url, "--out", out)
        assert "attempts 1 problems of 3" in said
        asked, before = len(script.requests), problems.read_bytes()
        status, _, err = in_process("collect", "--problems", problems, "--human", url, "--out",
                                    problems)
        assert status == 2 and "holds something else" in err and problems.read_bytes() == before
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["p0", "p1", "p2"]
    assert {row["code"] for row in rows} == {READS + "\n"}
    assert asked == 2 + 3


def test_collect_keeps_to_one_model_and_its_problems(problems, tmp_path):
    """A statement that is too long for her has no program, and is tried again."""
    out = tmp_path / "programs.jsonl"
    changed = tmp_path / "changed.jsonl"
    changed.write_text(problems.read_text().replace("Add two numbers.", "Subtract."))

    def answers(path, body):
        long = any("Subtract" in message["content"] for message in body["messages"])
        return (400, {"error": {"message": "maximum context length"}}, {}) if long else plays(
            path, body)

    with serving(answers) as (url, _):
        flags = ["collect", "--human", url, "--limit", 2, "--problems"]
        run(*flags, problems, "--out", out)
        for more, message in ((["--human-model", "other"], "holds programs of tiny"),
                              (["--problems", changed], "holds a program of another problem p")):
            status, _, err = in_process(*flags, problems, "--out", out, *more)
            assert status == 2 and message in err
        said = run(*flags, changed, "--out", tmp_path / "new.jsonl")
        assert "2 have no program" in said and "0 programs of these problems" in said
        assert "attempts 2 problems of 2" in run(*flags, changed, "--out", tmp_path / "new.jsonl")


def test_collect_keeps_to_its_settings(problems, tmp_path):
    out = tmp_path / "programs.jsonl"
    with serving(plays) as (url, _):
        flags = ["collect", "--human", url, "--problems", problems, "--out", out, "--limit", 1]
        run(*flags)
        for name, value in (("temperature", 0.5), ("seed", 3), ("max-tokens", 9)):
            status, _, err = in_process(*flags, f"--{name}", value)
            assert status == 2 and f"made with --{name} " in err and "another --out" in err
        run(*flags)


def test_programs_that_were_cut_are_kept_as_such_and_empty_ones_are_tried_again(problems, tmp_path):
    out, answers = tmp_path / "programs.jsonl", [
        chat(f"```python\n{READS}\n```"), chat("```python\nx = 1\nif x"), chat(None), chat("y = 2")]
    answers[1]["choices"][0]["finish_reason"] = answers[2]["choices"][0]["finish_reason"] = "length"
    with serving(lambda path, body: answers.pop(0)) as (url, _):
        flags = ["collect", "--human", url, "--problems", problems, "--out", out, "--parallel", 1]
        said = run(*flags)
        assert "1 have no program" in said and "1 cut before the answer began" in said
        assert "1 programs were cut at --max-tokens" in said
        assert "attempts 1 problems of 3" in run(*flags)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["cut"] for row in rows] == [False, True, False]
    texts, _ = corpus.read_corpus(str(out))
    assert texts == [READS + "\n", "x = 1\nif x", "y = 2\n"]
    assert [ends for _, ends in corpus.cut(family("qwen"), texts, 99)] == [True, False, True]


def test_a_model_that_only_reasons_ends_the_run(problems, tmp_path):
    silent = chat(None)
    silent["choices"][0]["finish_reason"] = "length"
    for command in ("collect", "play"):
        with serving(lambda path, body: silent) as (url, script):
            status, _, err = in_process(command, "--human", url, "--problems", problems, "--out",
                                        tmp_path / command)
        assert status == 2 and "--reasoning-tokens" in err and len(script.requests) <= 4


def rows_of(out):
    return {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}


def test_play_makes_the_table_of_the_paper(problems, tmp_path):
    out, base = tmp_path / "out", published(tmp_path / "base")
    with serving(plays) as (url, script):
        flags = ["--problems", problems, "--human", url, "--out", out, "--device", "cpu",
                 "--turn-tokens", 4, "--rounds", 30, "--max-suggestion", 20, "--limit", 2]
        said = run("play", *flags, "--assistant", f"Base={base}", f"SFT-6={url}#other",
                   f"Asked=chat:{url}")
        asked = len(script.requests)
        again = run("play", *flags, "--assistant", f"Base={base}", f"SFT-6={url}#other",
                    f"Asked=chat:{url}")
        assert again[again.index("\nThe game on"):] == said[said.index("\nThe game on"):]
        assert len(script.requests) - asked <= 6  # the models, and whether seeds are obeyed
    rows, [stopped] = rows_of(out), [name for name in rows_of(out) if "stopped" in name]
    assert list(rows) == ["Human alone", "Base", "Base-4", "Base-8", stopped, "SFT-6", "Asked"]
    for name in ("Human alone", "SFT-6", "Asked"):
        assert rows[name]["pass@1"] == 1, name
    assert rows["Human alone"]["tokens_read"] == 0 and rows["Human alone"]["unclear"] is None
    assert rows["SFT-6"]["accept_ratio"] == rows["Asked"]["accept_ratio"] == 1
    assert rows["SFT-6"]["unclear"] == 0
    assert rows["SFT-6"]["tokens_written"] < rows["Human alone"]["tokens_written"]
    assert rows["SFT-6"]["suggestion_length"] <= 6
    assert rows["Base"]["accept_ratio"] < 0.5
    results = json.loads((out / "results.json").read_text())
    assert results["seeds"] == "obeyed" and "ACCEPT" in results["prompts"]["human_read"]
    assert "Programs could import\nthe standard library alone." in said
    assert (out / "transcripts" / "sft-6.txt").read_text().count("accepted")
    line = json.loads((out / "episodes" / "asked.jsonl").read_text().splitlines()[0])
    encoding = family("qwen")
    assert encoding.decode(Episode.from_dict(line["episode"]).code) == PROGRAM
    assert {body["model"] for path, body, _ in script.requests
            if path.endswith("/completions") and body and "prompt" in body} == {"other"}


def test_other_settings_need_another_folder(problems, tmp_path):
    out = tmp_path / "out"
    with serving(plays) as (url, _):
        flags = ["--problems", problems, "--human", url, "--out", out, "--limit", 1]
        run("play", *flags)
        run("play", *flags, "--assistant", f"New={url}")  # one more row is fine
        with serving(plays) as (elsewhere, _):                # and the same model elsewhere
            run("play", *flags, "--assistant", f"New={elsewhere}")
        results = json.loads((out / "results.json").read_text())
        assert results["assistants"] == {"New": "ServedAssistant tiny"}
        for changed, name in ((["--rounds", 3], "rounds"), (["--seed", 1], "seed"),
                              (["--assistant", f"New=chat:{url}"], "assistant New"),
                              (["--assistant", f"New={url}#other"], "assistant New")):
            status, _, err = in_process("play", *flags, *changed)
            assert status == 2 and f"begun with another {name}" in err


def test_killed_at_any_moment_it_goes_on(problems, tmp_path):
    """kill -9 while the second episode is played: the first is kept, and nothing is lost."""
    out, slow = tmp_path / "out", []

    def slowly(path, body):
        if len(slow) > 25 and "killed" not in slow:
            time.sleep(0.3)
        slow.append(path)
        return plays(path, body)

    with serving(slowly) as (url, script):
        command = [sys.executable, "empower.py", "play", "--problems", str(problems), "--human",
                   url, "--out", str(out), "--parallel", "1", "--turn-tokens", "2"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        path = out / "episodes" / "human-alone.jsonl"
        for _ in range(600):
            if path.exists() and path.read_bytes().count(b"\n") and len(slow) > 27:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = path.read_bytes()
        assert kept.count(b"\n") in (1, 2)
        slow.append("killed")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(kept[:kept.rindex(b"\n") + 1])
    assert rows_of(out)["Human alone"]["pass@1"] == 1


def human(answer):
    """A PromptedHuman whose server gives these answers in turn."""
    class Fake:
        asked, answers = [], answer

        def chat(self, messages, *rest):
            self.asked.append(messages)
            if isinstance(answer[0], Exception):
                raise answer.pop(0)
            return answer.pop(0)

    found = PromptedHuman(Fake(), family("qwen"), 4, 1.0, 0)
    found.begin(["Add."])
    return found


@pytest.mark.parametrize("answers, accepted, finished, unclear, calls", [
    (["Good. ACCEPT"], True, False, 0, 1), (["Bad. REJECT"], False, False, 0, 1),
    (["FINISH"], False, True, 0, 1), (["hm", "accept"], True, False, 0, 2),
    (["hm", "finish"], False, True, 0, 2), (["", "maybe"], False, False, 1, 2)])
def test_her_verdict_is_asked_for_twice_and_then_a_rejection(answers, accepted, finished, unclear,
                                                             calls):
    she = human([*answers, "```python\n= 1\n```"])
    encoding = family("qwen")
    [(costs, verdict)] = she.read([encoding.encode_ordinary("x ")], [
        encoding.encode_ordinary("= 2")])
    assert (costs, verdict) == ([], accepted)
    [typed], [done] = she.type([encoding.encode_ordinary("x ")], encoding.stops, None)
    assert done == finished and (she.asked, she.unclear) == (1, unclear)
    assert encoding.decode(typed) == ("" if finished else "= 1")
    assert len(she.server.asked) == calls + (not finished)
    she.server.asked.clear()


@pytest.mark.parametrize("answer, typed, done", [
    ("DONE", "", True), ("```python\n```", "", True), ("x\nDONE", "x\n", True),
    ("x = 1 + 2 + 3\nDONE", "x = 1 + 2 + 3\n", False),
    ("```\nab" * 1000, None, False)])
def test_what_she_writes_is_cut_at_her_turn(answer, typed, done):
    """An answer that adds nothing is asked for once more."""
    she, encoding = human([answer] * (2 if "python" in answer else 1)), family("qwen")
    she.read([[]], [[]])
    [new], [ended] = she.type([[]], encoding.stops, None)
    assert ended == done and len(new) <= 4
    if typed is not None:
        assert encoding.decode(new) == encoding.decode(encoding.encode_ordinary(typed)[:4])
    assert not she.server.answers  # all were asked for


def test_a_prompt_that_is_too_long_is_no_unclear_answer():
    she, encoding = human([TooLong("too long")]), family("qwen")
    assert she.read([[]], [encoding.encode_ordinary("x")]) == [([], False)]
    assert (she.asked, she.unclear, len(she.server.asked)) == (0, 0, 1)


def test_code_that_does_not_fit_ends_the_episode_unfinished():
    """Her server refuses a prompt that is too long; an assistant's is silent then."""
    encoding = family("qwen")
    she = human(["x", TooLong("too long")])
    assert she.type([[]], encoding.stops, None) == ([encoding.encode_ordinary("x")[:4]], [False])
    assert she.has_room(0, [], 9)
    assert she.type([[]], encoding.stops, None) == ([[]], [False]) and not she.has_room(0, [], 9)
    with serving(lambda path, body: (400, {"error": {"message": (
            "This model's maximum context length is 4096 tokens")}}, {})) as (url, _):
        assistant = players.ServedAssistant(Server(url, "m"), encoding, 5)
        assert assistant.suggest([encoding.encode_ordinary("x = 1")], [],
                                 torch.Generator()) == [[]]
    with serving(lambda path, body: (400, {"error": {"message": "no"}}, {})) as (url, _):
        with pytest.raises(UserError, match="answered 400: no"):
            Server(url, "m").chat([], 5)


def test_a_key_that_is_missing_is_named():
    with serving(lambda path, body: (401, {"error": {"message": "who are you?"}}, {})) as (url, _):
        with pytest.raises(UserError, match="answered 401.*set OPENAI_API_KEY"):
            Server(url, "m").chat([], 5)


def test_two_runs_do_not_write_to_the_same_file(problems, tmp_path):
    out = tmp_path / "programs.jsonl"
    with serving(plays) as (url, _):
        with alone(out):
            status, _, err = in_process("collect", "--problems", problems, "--human", url, "--out",
                                        out)
            assert status == 2 and "another run writes to" in err and err.count("\n") == 1
        run("collect", "--problems", problems, "--human", url, "--out", out)


def test_names_that_would_share_a_file_are_refused(problems, tmp_path):
    with serving(plays) as (url, _):
        status, _, err = in_process(
            "play", "--problems", problems, "--human", url, "--out", tmp_path / "out",
            "--assistant", f"A b={url}", f"a-b={url}")
        assert status == 2 and "A b and a-b" in err


def test_rows_that_are_there_keep_their_tokenizer(problems, tmp_path):
    """A local assistant that comes later would bring another one."""
    out, base = tmp_path / "out", published(tmp_path / "base")
    with serving(plays) as (url, _):
        flags = ["--problems", problems, "--human", url, "--out", out, "--limit", 1, "--device",
                 "cpu", "--rounds", 2]
        run("play", *flags)
        status, _, err = in_process("play", *flags, "--assistant", f"New={base}")
        assert status == 2 and "begun with another tokens" in err


def test_silence_costs_no_call():
    she = human([])
    assert she.read([[1], [2]][:1], [[]]) == [([], False)] and not she.asked


def test_a_prompt_that_somebody_broke_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(players, "PROMPTS", tmp_path)
    (tmp_path / "assistant.txt").write_text("Go on: {program}")
    with pytest.raises(UserError, match="assistant.txt cannot be used .*names in braces are code"):
        prompt("assistant", code="x")
    with pytest.raises(UserError, match="human_again.txt"):
        prompt("human_again")


@pytest.mark.parametrize("flags, said", [
    ([], "--problems is missing"), (["--problems", "absent.jsonl"], "--human is missing"),
    (["--problems", "absent.jsonl", "--human", "http://127.0.0.1:9"], "absent.jsonl"),
    (["--human-kind", "person"], "choose chat or base"), (["--rounds", "0"], "--rounds is 0")])
def test_bad_flags_are_one_sentence(flags, said):
    status, _, err = in_process("play", *flags)
    assert status == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize("assistant, said", [
    ("Base", "not NAME=SOURCE"), ("=x", "not NAME=SOURCE"), ("Human alone=x", "a name of its own"),
    ("A=absent", "absent"), ("A=ftp://x", "ftp")])
def test_bad_assistants_are_one_sentence(assistant, said, problems, tmp_path):
    with serving(plays) as (url, _):
        status, _, err = in_process("play", "--problems", problems, "--human", url, "--out",
                                    tmp_path / "out", "--assistant", assistant)
    assert status == 2 and said in err and err.count("\n") == 1


def test_a_base_model_continues_the_statement(problems, tmp_path):
    def continues(path, body):
        assert path == "/v1/completions"  # a base model has no template for a chat
        if body["prompt"].endswith("Answer:\n"):
            return completion("It is wrong.\nREJECT")
        code = body["prompt"].partition("Solution in Python\n")[2]
        return completion(PROGRAM[len(code):len(code) + 12])

    with serving(continues) as (url, script):
        run("play", "--problems", problems, "--human", url, "--out", tmp_path / "out",
            "--human-kind", "base", "--limit", 1, "--assistant", f"SFT-10={url}")
    row = rows_of(tmp_path / "out")
    assert row["Human alone"]["pass@1"] == row["SFT-10"]["pass@1"] == 1
    assert row["SFT-10"]["accept_ratio"] == row["SFT-10"]["unclear"] == 0
    prompts = [body["prompt"] for _, body, _ in script.requests if body and "prompt" in body]
    assert next(prompt for prompt in prompts if prompt.startswith("#")) == (
        "# Problem\n# Add two numbers.\n#\n# It reads from standard input and prints its answer."
        "\n#\n# Solution in Python\n")


def test_ctrl_c_does_not_wait_for_calls(tmp_path):
    """Ctrl-C while another call hangs: that call is ended, and what was finished is kept."""
    release, hung, waited = threading.Event(), threading.Event(), []

    def hangs(path, body):
        if body["messages"][0]["content"] == "hang":
            hung.set()
            waited.append(release.wait(60))
        return chat("Hi")

    def work(item):
        if item == "interrupt":
            assert hung.wait(20)
            raise KeyboardInterrupt
        return {"id": server.chat([{"role": "user", "content": item}], 1)}

    with serving(hangs) as (url, _):
        server = Server(url)
        for items in (["fast"], ["hang", "interrupt", "never"]):
            with contextlib.suppress(KeyboardInterrupt):
                in_parallel(items, work, tmp_path / "rows", 2, None, [server])
        assert (tmp_path / "rows").read_text() == '{"id": "Hi"}\n' and not waited
        with pytest.raises(UserError, match="were ended"):
            server.chat([{"role": "user", "content": "fast"}], 1)
        release.set()


PAGE = (ROOT / "section5" / "README.md").read_text()


def test_the_page_has_the_estimate_and_its_commands_parse():
    assert cost.text() in PAGE
    commands = re.findall(r"^python empower.py (.*?)(?: +#.*)?$", PAGE.replace("\\\n", ""),
                          re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        function, cfg = cli.parse(shlex.split(command), empower.Config, empower.run)
        assert function.__name__ == command.split()[0]
    assert cfg.assistant[-1].endswith("#sft10") and len(cfg.assistant) == 3


def test_an_estimate_counts_what_the_protocol_asks_for():
    collected, wrote, read, suggested = cost.estimate(given=cost.Assumptions(
        statement=10, program=40, reasons=5, rounds=2, prompt=10, reading=1, writing=1,
        assistant=1))
    assert collected["calls"] == 4138 and collected["hours"] * 3600 == 4138 * (20 + 40)
    assert wrote["calls"] == 9 * 554 * 2 and read["calls"] == suggested["calls"] == 8 * 554 * 2
    assert read["hours"] * 3600 == pytest.approx(read["calls"] * (10 + 10 + 2 * 20 + 5))


def test_lines_of_another_file_are_not_touched(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="holds something else"):
        read_lines(path, ("id",))
    path.write_text("a text without a line break")
    with pytest.raises(UserError, match="holds something else"):
        read_lines(path, ("id",))
    assert path.read_text() == "a text without a line break"
    path.write_text('{"id": 1}\n{"id": 2}\n{"id"')
    assert read_lines(path, ("id",)) == [{"id": 1}, {"id": 2}]
    assert path.read_text() == '{"id": 1}\n{"id": 2}\n'
    path.write_text('{"id"')
    assert read_lines(path, ("id",)) == [] and path.read_text() == ""


@pytest.mark.skipif(not DATA.exists(), reason="needs the development data")
def test_real_problems_are_collected(tmp_path):
    with serving(plays) as (url, _):
        run("collect", "--problems", DATA / "mbpp.jsonl", "--human", url, "--out",
            tmp_path / "p.jsonl", "--limit", 5)
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 5
