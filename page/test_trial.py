"""The user study: its plan, its people and their records, over the routes that the page uses."""

import contextlib
import json
import math
import os
import random
import resource
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

import page.person
import page.trial
from page.line import Call
from page.offered import find_offer
from page.person import edited
from page.plan import CONSENT, EXAMPLE, open_plan
from page.refused import Refused
from page.server import Config
from page.study import Figures, analyse, main, read_study
from page.trial import AT_ONCE, RUNS, Trial, arrangement
from support.cli import UserError
from support.test_helpers import in_process, until


@pytest.fixture(scope="module")
def models():
    return find_offer(Config(device="cpu")).models


def planned(folder, **changes):
    """A folder with a plan."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(
        {**EXAMPLE, "join_code": "1234", "delay_ms": 0, **changes}))
    (folder / "consent.txt").write_text(CONSENT)
    return folder


class Class:
    """A study and the requests of its people."""

    def __init__(self, folder, models):
        self.folder, self.models = folder, models
        self.restart()

    def restart(self):
        if hasattr(self, "trial"):
            os.close(self.trial.held)  # as the end of the process does
        self.trial = Trial.open(self.folder)
        self.works = self.trial.routes(self.models)

    def post(self, name, **body):
        return self.works["POST", f"/api/study/{name}"](body, Call(time.monotonic()))

    def join(self):
        return self.post("join", join_code="1234")["word"]

    def state(self, word, tab="tab"):
        return self.post("state", word=word, tab=tab)

    def send(self, word, *actions, part=0, first=None, tab="tab", used=1):
        """Sends (type, info, caret) of each action."""
        first = first or self.trial.people[word].last + 1
        return self.post("events", word=word, tab=tab, events=[
            {"n": n, "after": max(0, 1000 * (n - 2)), "part": part, "ms": 1000 * (n - 1),
             "type": kind, "info": info, "caret": caret, "used": used}
            for n, (kind, info, caret) in enumerate(actions, first)])


@pytest.fixture
def klass(tmp_path, models):
    return Class(planned(tmp_path / "study"), models)


def refused(status, work, *arguments, **options):
    with pytest.raises(Refused) as found:
        work(*arguments, **options)
    assert found.value.status == status


BEGIN = ("current_code", "", 0)


# ------------------------------------------------------------------- the people


def test_a_person_joins_with_the_code_and_is_known_by_a_word(klass):
    refused(403, klass.post, "join", join_code="4321")
    assert klass.post("join", join_code=" 1234")
    refused(403, klass.post, "join", join_code="\ud800")
    word = klass.join()
    refused(403, klass.state, word + "0")
    refused(403, klass.state, "../study")
    state = klass.state(f" {word.upper()} ")
    assert state["parts"] == ["assistant_1", "assistant_2"] and not state["begun"]
    folder = klass.folder / word
    assert [path.name for path in folder.iterdir()] == ["person.json"]
    order = json.loads((folder / "person.json").read_text())["assistants"]
    assert set(order) == set(EXAMPLE["assistants"])


def test_nothing_that_a_person_gets_names_an_assistant(klass):
    word = klass.join()
    got = [klass.works["GET", "/api/about"]({}, 0), klass.state(word), klass.send(word, BEGIN),
           klass.post("suggest", word=word, text="n = int(")]
    for name in (*EXAMPLE["assistants"], "Empower", "Base"):
        assert name not in json.dumps(got)
    assert {path for _, path in klass.works} == {"/api/about", *(
        f"/api/study/{name}" for name in ("join", "state", "events", "suggest", "test", "answers"))}


def test_no_more_people_than_planned(tmp_path, models):
    klass = Class(planned(tmp_path / "study", most_people=1), models)
    klass.join()
    refused(403, klass.join)


def test_orders_and_problems_are_balanced_after_every_block():
    from page.plan import Plan, Task
    plan = Plan("c", ("A", "B", "C"), (Task("p", "", ()), Task("q", "", ())), (), "")
    drawn = [arrangement(plan, k) for k in range(36)]
    for block in range(3):
        counts = Counter((tuple(order), problem) for order, problem in
                         drawn[12 * block:12 * block + 12])
        assert len(counts) == 12 and set(counts.values()) == {1}
    assert drawn[:12] != drawn[12:24]  # each block in an order of its own
    assert drawn == [arrangement(plan, k) for k in range(36)]


def test_each_part_has_its_assistant_at_the_same_delay(klass, monkeypatch):
    slept = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds: slept.append(seconds))
    object.__setattr__(klass.trial.plan, "delay_ms", 5000)
    word = klass.join()
    asked = []
    monkeypatch.setattr(klass.models, "suggest", lambda name, editor, request, call: asked.append(name))
    order = json.loads((klass.folder / word / "person.json").read_text())["assistants"]
    klass.post("suggest", word=word, text="before the clock starts")
    klass.send(word, BEGIN)
    klass.post("suggest", word=word, text="x")
    klass.send(word, ("done", "", 0))
    klass.send(word, BEGIN, part=1)
    klass.post("suggest", word=word, text="x")
    assert asked == order
    assert all(4.5 < seconds <= 5 for seconds in slept) and len(slept) == 3


def test_an_assistant_that_is_slower_than_the_delay_is_reported(klass, capsys):
    word = klass.join()
    klass.send(word, BEGIN)
    object.__setattr__(klass.trial.plan, "delay_ms", 50)
    ask = klass.works["POST", "/api/study/suggest"]
    for seconds, said in ((10, True), (11, False), (30, True)):  # not at every suggestion
        klass.trial.people[word].asked = 0
        ask({"word": word, "text": "x"}, Call(time.monotonic() - seconds))
        assert ("raise delay_ms" in capsys.readouterr().out) == said
    object.__setattr__(klass.trial.plan, "delay_ms", 60_000)
    klass.trial.latest = 0
    klass.trial.people[word].asked = 0
    asking = threading.Thread(target=ask, args=({"word": word, "text": "x"}, Call(time.monotonic())))
    before = klass.trial.people[word].asking
    asking.start()
    until(lambda: klass.trial.people[word].asking is not before)
    klass.trial.people[word].asking.set()  # typing has overtaken it
    asking.join()
    assert capsys.readouterr().out == ""


def test_people_who_ask_at_once_all_get_an_answer(klass, monkeypatch):
    """None of them takes the place of another in the line."""
    words, found, hold = [klass.join() for _ in range(6)], [], threading.Event()
    for writer in klass.models.writers.values():
        monkeypatch.setattr(writer, "round", lambda jobs, work=writer.round: (
            hold.wait(20) and work(jobs)))
    for word in words:
        klass.send(word, BEGIN)
    threads = [threading.Thread(target=lambda word=word: found.append(
        klass.post("suggest", word=word, text="n = int(")["suggestion"])) for word in words]
    for thread in threads:
        thread.start()
    until(lambda: len(klass.models.line.jobs) == 6)
    hold.set()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(found)


def test_the_terminal_says_where_people_are(klass, capsys):
    one, two = klass.join(), klass.join()
    klass.send(one, BEGIN)
    assert capsys.readouterr().out.splitlines() == [
        "1 joined: 1 before part 1", "2 joined: 2 before part 1",
        "2 joined: 1 before part 1, 1 in part 1"]
    klass.send(one, ("character_typed", "a", 1))
    assert capsys.readouterr().out == ""
    klass.send(one, ("done", "", 1))
    klass.send(one, BEGIN, ("done", "", 0), part=1)
    klass.post("answers", word=one, answers=dict.fromkeys(EXAMPLE["questions"], "assistant_1"))
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "2 joined: 1 at the questions, 1 before part 1",
        "2 joined: 1 before part 1, 1 have finished"]
    assert two not in capsys.readouterr().out


def test_a_part_without_an_assistant_comes_first(tmp_path, models):
    klass = Class(planned(tmp_path / "study", minutes_alone=25), models)
    word = klass.join()
    assert klass.state(word)["parts"] == ["alone", "assistant_1", "assistant_2"]
    assert klass.state(word)["minutes"] == [25, 15, 15]
    klass.send(word, BEGIN, ("character_typed", "a", 1))
    assert klass.post("suggest", word=word, text="n = int(") == {"suggestion": ""}
    klass.send(word, ("done", "", 1))
    klass.send(word, ("current_code", "a", 1), ("proposed_suggestion", "bc", 1),
               ("accepted_suggestion", "bc", 3), part=1)
    found = analyse(read_study(klass.folder))
    assert {row["name"]: row["typed"] for row in found["rows"]}["alone"] == 1
    assert found["votes"] == [] and found["tests"] == []


# ------------------------------------------------------------------- what is kept


def test_the_record_is_analysed_and_written_as_logs(klass):
    word = klass.join()
    klass.send(word, BEGIN, ("character_typed", "a\tb\n", 4), ("proposed_suggestion", "xyz", 4),
               ("accepted_suggestion", "xyz", 7), ("tick", "", 0), ("deletion", "2", 5),
               ("cursor_moved", "", 1))
    person = klass.trial.people[word]
    main([str(klass.folder), "--logs"])
    [log] = (klass.folder / word / "assistant_1").iterdir()
    assert log.name == person.problem.name + ".csv"
    assert log.read_text() == "timestamp\taction_type\taction_info\tcaret_index\n" + "".join(
        f"1970-01-01T00:00:0{k}.000Z\t{kind}\t{info}\t{caret}\n" for k, kind, info, caret in (
            (0, "current_code", "", 0), (1, "character_typed", "a\\tb\\n", 4),
            (2, "proposed_suggestion", "xyz", 4), (3, "accepted_suggestion", "xyz", 7),
            (5, "deletion", "2", 5), (6, "cursor_moved", "", 1)))
    found, answers, solved = read_study(klass.folder)[word]
    assert found == {person.assistants[0]: Figures(1, 1, 3, 2, 4, 3)}
    assert answers is None and solved == set()
    assert klass.state(word)["code"] == "a\tb\nx"


def test_events_that_come_twice_count_once_and_gaps_are_refused(klass):
    word = klass.join()
    klass.send(word, BEGIN, ("character_typed", "a", 1))
    assert klass.send(word, ("character_typed", "a", 1), ("character_typed", "b", 2),
                      first=2)["last"] == 3
    refused(409, klass.send, word, ("character_typed", "c", 3), first=5)
    refused(409, klass.send, word, ("character_typed", "c", 9))
    refused(409, klass.send, word, ("deletion", "9", 1))
    refused(409, klass.send, word, BEGIN, part=1)  # it has not begun
    assert klass.state(word)["code"] == "ab" and klass.state(word)["last"] == 3
    assert klass.send(word, ("character_typed", "c", 3))["last"] == 4
    refused(409, klass.send, word, *[("character_typed", "a" * 60_000, 60_000)] * 2)
    klass.send(word, ("deletion", "60000", 0))
    refused(400, klass.send, word, ("shouted", "", 0))
    refused(400, klass.send, word, ("deletion", "-1", 0))
    refused(409, klass.send, word, BEGIN, part=2)
    for part in (0, 1):
        klass.send(word, *[BEGIN] * part, ("done", "", 0), part=part)
    refused(409, klass.send, word, BEGIN, part=2)


def test_a_killed_server_goes_on_where_it_was(klass):
    """At every byte at which the record may have been cut off."""
    word = klass.join()
    klass.send(word, BEGIN, ("character_typed", "é\n", 2), ("accepted_suggestion", "xy", 4),
               ("deletion", "1", 3))
    folder = klass.folder / word
    record = folder / "events.jsonl"
    whole = record.read_bytes()
    codes = ["", "é\n", "é\nxy", "é\nx"]
    for size in range(len(whole) + 1):
        record.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        if lines:  # the analysis may come before the server
            [figures] = read_study(klass.folder)[word][0].values()
            assert (figures.typed, figures.accepted, figures.deleted) == (
                2 * (lines > 1), lines > 2, lines > 3)
            assert record.read_bytes() == whole[:size]
        klass.restart()
        assert klass.state(word)["last"] == lines and klass.trial.people[word].code == (
            codes[lines - 1] if lines else "")
        assert record.read_bytes() == b"".join(whole.splitlines(keepends=True)[:lines])
    assert klass.send(word, ("character_typed", "!", 4))["last"] == 5
    klass.restart()
    assert klass.state(word)["code"] == "é\nx!"


def test_random_editing_is_restored(klass):
    rng, word, code = random.Random(0), klass.join(), ""
    klass.send(word, BEGIN)
    for _ in range(300):
        at = rng.randint(0, len(code))
        if code and rng.random() < 0.4:
            n = rng.randint(1, len(code) - at) if at < len(code) else 0
            code = code[:at] + code[at + n:]
            klass.send(word, ("deletion", str(n), at))
        else:
            new = rng.choice(["a", "\n", "\\n", "\t", "é😀"])
            code = code[:at] + new + code[at:]
            klass.send(word, (rng.choice(["character_typed", "accepted_suggestion"]), new,
                              at + len(new)))
    klass.restart()
    assert klass.state(word)["code"] == code


def test_an_edit_by_hand():
    assert edited("abcd", "character_typed", "xy", 3) == "axybcd"
    assert edited("abcd", "deletion", "2", 1) == "ad"
    assert edited("abcd", "current_code", "z", 0) == "z"
    assert edited("abcd", "cursor_moved", "", 2) == "abcd"


def test_one_tab_writes_at_a_time(klass):
    word = klass.join()
    klass.state(word, tab="one")
    klass.send(word, BEGIN, tab="one")
    klass.state(word, tab="two")
    refused(423, klass.send, word, ("character_typed", "a", 1), tab="one")
    klass.send(word, ("character_typed", "b", 1), tab="two")
    klass.restart()
    refused(423, klass.send, word, ("character_typed", "d", 2), tab="one")
    klass.send(word, ("character_typed", "c", 2), tab="two")


def test_what_was_typed_without_a_connection_is_kept_if_another_browser_went_on(klass):
    word = klass.join()
    klass.send(word, BEGIN, ("character_typed", "a", 1))
    offline = [{"n": n, "after": 0 if n == 2 else 75 + n - 1, "part": 0, "ms": 75 + n,
                "type": "character_typed", "info": f"lost {n}", "caret": 6 * n, "used": 1}
               for n in range(2, 6)]  # two of them have numbers that the server has not seen
    assert klass.post("events", word=word, tab="tab", events=offline[1:3]) == {"last": 2, "taken": 4}
    assert klass.post("events", word=word, tab="tab", events=offline) == {"last": 2, "taken": 5}
    late = (klass.folder / word / "late.jsonl").read_text()
    assert [late.count(f'"lost {n}"') for n in range(2, 6)] == [1, 2, 2, 1]
    klass.post("events", word=word, tab="tab", late=True, events=[
        {**offline[0], "n": 3, "after": 1000, "info": "refused"}])
    assert "refused" in (klass.folder / word / "late.jsonl").read_text()
    assert klass.state(word)["code"] == "a" and klass.state(word)["last"] == 2
    assert klass.send(word, ("character_typed", "b", 2))["last"] == 3


def test_what_is_acknowledged_is_on_the_disk(klass, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")
                                                                if sys.platform == "linux" else ""))
    word = klass.join()
    klass.send(word, BEGIN)
    if sys.platform == "linux":
        assert any(path.endswith("events.jsonl") for path in synced)
    assert synced


def test_a_request_has_so_many_events_at_most(klass):
    word = klass.join()
    klass.send(word, BEGIN)
    found = klass.send(word, *[("cursor_moved", "", 0)] * (AT_ONCE + 50))
    assert found["last"] == 1 + AT_ONCE


def test_the_same_events_sent_twice_at_once_count_once(klass, monkeypatch):
    """A browser that lost the connection sends again while the first request is still at work."""
    word = klass.join()
    klass.send(word, BEGIN)
    person = klass.trial.people[word]

    def slow(*arguments):
        time.sleep(0.1)
        return edited(*arguments)

    monkeypatch.setattr(page.person, "edited", slow)
    threads = [threading.Thread(target=klass.send, args=(
        word, ("character_typed", "a", 1)), kwargs={"first": 2}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert person.code == "a" and person.last == 2
    klass.restart()
    assert klass.trial.people[word].code == "a"


@contextlib.contextmanager
def full_disk(path, room):
    """Only so many bytes of what is added to a file get onto the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.stat().st_size if path.exists() else 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 20, 300])
def test_a_full_disk_loses_nothing_that_was_acknowledged(klass, room):
    """Part of the events is written, then the disk is full; later there is room again."""
    word = klass.join()
    klass.send(word, BEGIN)
    typed = [("character_typed", "abc", 3), ("deletion", "1", 2), ("tick", "", 0)]
    with full_disk(klass.folder / word / "events.jsonl", room):
        refused(503, klass.send, word, *typed)
    assert klass.state(word)["last"] == 1
    assert klass.send(word, *typed)["last"] == 4
    klass.restart()
    assert klass.state(word)["code"] == "ab"


def test_what_was_typed_elsewhere_is_kept_once_there_is_room_for_it(klass):
    word = klass.join()
    klass.send(word, BEGIN)
    late = klass.folder / word / "late.jsonl"
    events = [{"n": n, "after": 0, "part": 0, "ms": ms, "type": "tick", "info": info, "caret": 0,
               "used": 1} for n, ms, info in ((2, 1000, ""), (1, 5, "x" * 500))]
    with full_disk(late, 400):  # enough for the record
        refused(503, klass.post, "events", word=word, tab="tab", events=events)
    assert late.read_text() == "" and klass.state(word)["last"] == 2
    assert klass.post("events", word=word, tab="tab", events=events) == {"last": 2, "taken": 2}
    klass.restart()
    assert klass.state(word)["last"] == 2 and late.read_text().count("\n") == 1


def test_half_a_line_of_any_file_is_removed(klass):
    """Else the next line would be spoilt with it."""
    word = klass.join()
    for name in ("events", "late", "tests"):
        (klass.folder / word / f"{name}.jsonl").write_text('{"n": 1')
    klass.restart()
    assert all(path.read_text() == "" for path in (klass.folder / word).glob("*.jsonl"))


def test_a_tab_has_a_short_name(klass):
    refused(400, klass.state, klass.join(), tab="x" * 41)


def test_the_threshold_takes_part_with_the_eta_of_the_plan(tmp_path, models, monkeypatch):
    names = ["Base stopped at eta", "Base-10"]
    klass = Class(planned(tmp_path / "study", assistants=names, eta=1.5), models)
    asked = {}
    monkeypatch.setattr(klass.models, "suggest",
                        lambda name, editor, request, call: asked.update({name: request.eta}))
    for _ in range(4):
        word = klass.join()
        klass.send(word, BEGIN)
        klass.post("suggest", word=word, text="x")
    assert asked == {"Base stopped at eta": 1.5, "Base-10": math.inf}


def test_one_server_serves_a_study(klass):
    with pytest.raises(UserError, match="another page serves"):
        Trial.open(klass.folder)


def test_events_before_one_that_is_refused_are_kept(klass):
    word = klass.join()
    refused(409, klass.send, word, BEGIN, ("character_typed", "a", 1), ("deletion", "9", 0))
    klass.restart()
    assert klass.state(word)["last"] == 2 and klass.state(word)["code"] == "a"


def test_a_part_ends_with_its_time(klass):
    word = klass.join()
    klass.send(word, BEGIN, used=1)
    klass.send(word, ("character_typed", "a", 1), used=899)
    assert klass.state(word)["part"] == 0
    klass.send(word, ("tick", "", 0), used=900)
    assert klass.state(word)["part"] == 1 and klass.state(word)["used"] == 0
    klass.send(word, ("character_typed", "b", 2), used=905)  # typed at the last moment
    refused(409, klass.send, word, ("character_typed", "c", 3), used=931)
    klass.send(word, ("current_code", "ab", 2), part=1)
    refused(409, klass.send, word, ("character_typed", "c", 3), used=905)
    klass.restart()
    assert klass.state(word)["part"] == 1 and klass.state(word)["begun"]


def test_many_people_at_once_lose_nothing(klass):
    def person():
        word = klass.join()
        klass.send(word, BEGIN)
        for k in range(20):
            klass.send(word, ("character_typed", "a", k + 1))
    threads = [threading.Thread(target=person) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    klass.restart()
    assert len(klass.trial.people) == 16
    assert all(person.code == "a" * 20 for person in klass.trial.people.values())
    orders = Counter(json.dumps(person.assistants) + person.problem.name
                     for person in klass.trial.people.values())
    assert set(orders.values()) == {4}


# ------------------------------------------------------------------- tests and answers


def test_programs_run_only_if_the_plan_says_so(klass, tmp_path, models, capsys):
    word = klass.join()
    refused(403, klass.post, "test", word=word, text="print(6)")
    assert "RUN" not in klass.trial.announcement()
    problem = EXAMPLE["problems"][0]
    klass = Class(planned(tmp_path / "runs", run_programs=True, problems=[problem]), models)
    assert "no sandbox" in klass.trial.announcement()
    word = klass.join()
    right = "input()\nprint(sum(a for a in map(int, input().split()) if a % 2 == 0))"
    assert klass.post("test", word=word, text=right)["passed"]
    found = klass.post("test", word=word, text="print(6)")
    assert (found["passed"], found["test"], found["tests"]) == (False, 1, 2)
    assert found["outcome"] == "wrong answer" and "6" not in json.dumps(found)
    klass.send(word, BEGIN, ("done", "", 0))
    klass.send(word, BEGIN, part=1)
    klass.post("test", word=word, text=right)
    runs = [json.loads(line) for line in
            (klass.folder / word / "tests.jsonl").read_text().splitlines()]
    assert [(run["part"], run["passed"], run["event"]) for run in runs] == [
        ("assistant_1", True, 0), ("assistant_1", False, 0), ("assistant_2", True, 3)]
    assert sum(row["solved"] for row in analyse(read_study(klass.folder))["rows"]) == 2


def test_few_programs_run_at_a_time_and_one_for_each_person(tmp_path, models, monkeypatch):
    klass = Class(planned(tmp_path / "runs", run_programs=True), models)
    running, most, hold = [], [], threading.Event()

    def judge_all(programs, workers, label):
        running.append(1)
        most.append(len(running))
        assert hold.wait(20)
        running.pop()
        return [SimpleNamespace(passed=True, outcome="passed", test=None)]

    monkeypatch.setattr(page.trial, "judge_all", judge_all)
    words = [klass.join() for _ in range(4)]
    threads = [threading.Thread(target=klass.post, args=("test",), kwargs={
        "word": word, "text": ""}) for word in words]
    for thread in threads:
        thread.start()
    until(lambda: len(most) == RUNS and all(
        klass.trial.people[word].running.locked() for word in words))
    refused(429, klass.post, "test", word=words[0], text="")
    hold.set()
    for thread in threads:
        thread.join()
    assert max(most) == RUNS and len(most) == 4
    assert klass.post("test", word=words[0], text="")["passed"]


def test_answers_end_the_study_for_a_person(klass):
    word = klass.join()
    answers = dict.fromkeys(EXAMPLE["questions"], "assistant_2")
    refused(409, klass.post, "answers", word=word, answers=answers)
    for part in (0, 1):
        klass.send(word, BEGIN, ("done", "", 0), part=part)
    refused(400, klass.post, "answers", word=word, answers={**answers, EXAMPLE["questions"][0]: []})
    refused(400, klass.post, "answers", word=word, answers={})
    refused(400, klass.post, "answers", word=word,
            answers={**answers, EXAMPLE["questions"][0]: "Base-10"})
    klass.post("answers", word=word, answers={**answers, "another": "x"})
    assert json.loads((klass.folder / word / "answers.json").read_text()) == answers
    klass.restart()
    assert klass.state(word)["answered"]


# ------------------------------------------------------------------- the plan


def test_without_a_plan_an_example_is_written(tmp_path):
    folder = tmp_path / "study"
    status, stdout, stderr = in_process("page", "--no-browser", "--study", folder)
    assert status == 2 and stdout == "" and "edit both" in stderr
    plan = open_plan(folder)
    assert plan.assistants == tuple(EXAMPLE["assistants"]) and plan.consent == CONSENT
    assert len(plan.join_code) == 8 and not plan.run_programs
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").unlink()
    (folder / "consent.txt").unlink()
    with pytest.raises(UserError, match="edit both"):
        open_plan(folder)
    assert (folder / "plan.json").read_text() != text  # another code and another order
    with pytest.raises(UserError, match="not empty"):
        open_plan(tmp_path)


@pytest.mark.parametrize("changes, word", [
    ({"assistants": ["A"]}, "two to five"), ({"assistants": ["A", "A"]}, "different"),
    ({"assistants": list("ABCDEF")}, "two to five"), ({"problems": []}, "problems"),
    ({"problems": [EXAMPLE["problems"][0]] * 2}, "different names"), ({"minutes": 0}, "minutes"),
    ({"minutes": "x"}, "cannot be used"), ({"questions": [1]}, "texts"), ({"colour": 1}, "colour"),
    ({"problems": [{**EXAMPLE["problems"][0], "tests": [["1"]]}]}, "not a pair"),
    ({"problems": "x"}, "cannot be used"), ({"join_code": 5}, "texts"),
    ({"problems": [{**EXAMPLE["problems"][0], "name": 5}]}, "cannot be used"),
    ({"run_programs": 1}, "run_programs"), ({"consent": "x"}, "consent"),
    ({"problems": [{"name": "x"}]}, "cannot be used"), ({"join_code": " "}, "join_code"),
    ({"run_programs": True, "problems": [{"name": "x", "statement": "", "tests": []}]}, "no tests"),
])
def test_a_bad_plan_is_refused_in_one_sentence(tmp_path, changes, word):
    with pytest.raises(UserError, match=word):
        open_plan(planned(tmp_path, **changes))


def test_an_assistant_that_is_not_there_and_a_plan_that_changed_are_named(tmp_path, models):
    with pytest.raises(UserError, match="'Copilot'"):
        Class(planned(tmp_path / "a", assistants=["Copilot", "Base-10"]), models)
    klass = Class(planned(tmp_path / "b"), models)
    klass.join()
    os.close(klass.trial.held)
    with pytest.raises(UserError, match="must not change"):
        Class(planned(tmp_path / "b", problems=[{**EXAMPLE["problems"][0], "name": "new"}]), models)
    klass = Class(planned(tmp_path / "c"), models)
    klass.join()
    os.close(klass.trial.held)
    with pytest.raises(UserError, match="has joined with"):
        Class(planned(tmp_path / "c", assistants=["Base-10", "Base stopped at eta"]), models)
