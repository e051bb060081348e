"""The page's server over real HTTP: what it answers, whom it refuses, and that nothing ends it."""

import http.client
import ipaddress
import json
import math
import random
import re
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

import page.assistants
import page.line
import page.server
from empower import score
from model import KVCache, sample
from page.assistants import Models, Request, end_of
from page.api import Api
from page.completions import Completions, up_to_stop
from page.line import Busy, Call, Job, Line
from page.offered import find_offer, telling_first
from page.refused import Refused
from page.server import BODY, Config, Server, is_loopback
from realcode.suggest import heal
from support.test_helpers import in_process, tiny_run, until

PROGRAM = "n = int(input())\nitems = list(map(int, input().split()))\nprint(sum(items))\n"


@pytest.fixture(scope="module")
def offer():
    return find_offer(Config(device="cpu"))


@pytest.fixture(scope="module")
def server(offer):
    server = Server(("127.0.0.1", 0), {**Api(offer).routes(), **Completions(offer.models).routes()},
                    ("http://editor.example",))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, method, path, body=None, **headers):
    """(status, headers, text) of a request. body: plain data, or bytes as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, {"Content-Type": "application/json",
                                               **{k.replace("_", "-"): v
                                                  for k, v in headers.items()}})
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read().decode()
    connection.close()
    return found


def post(server, path, body, **headers):
    status, _, text = ask(server, "POST", path, body, **headers)
    assert status == 200, text
    return json.loads(text)


def alone(choice, text, eta=math.inf):
    """What an assistant suggests, computed without a cache that lives on: (text, bits)."""
    model, encoding = choice.checkpoint.model, choice.checkpoint.encoding
    ids = encoding.encode_ordinary(text)
    [(ids, typed, bits)] = heal(model, encoding, KVCache(model, 1), [ids])
    if bits > min(choice.healing, eta):
        return ""
    [new], _ = sample(model, KVCache(model, 1), [ids], choice.max_tokens,
                      encoding.stops, temperature=0, max_cost=eta - bits)
    return encoding.decode_bytes(ids[-1:] + new)[typed:].decode(errors="ignore")


# ------------------------------------------------------------------- what it answers


def test_the_page_and_what_it_offers(server):
    status, headers, html = ask(server, "GET", "/")
    assert status == 200 and html.startswith("<!doctype html>")
    policy = headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
            "frame-ancestors 'none'"} < set(policy)
    assert "script-src 'sha256-" in "; ".join(policy)
    assert re.findall(r"(?:src|href)=\"?([^\" >]*)", html) == [  # nothing is loaded from elsewhere
        "data:,", "https://arxiv.org/abs/2510.13709"]
    _, _, text = ask(server, "GET", "/api/about")
    about = json.loads(text)
    assert [each["name"] for each in about["assistants"]] == [
        "Empower (0.32)", "Base-10", "Base stopped at eta"]
    assert len(about["problems"]) == 8 and "Human alone" in about["rows"]
    assert about["texts"][0]["text"].count("\n") > 2


def test_a_program_is_read_as_the_scorer_reads_it(server, offer):
    model, encoding = offer.models.scorer.model, offer.models.scorer.encoding
    found = post(server, "/api/read", {"client": "a", "text": PROGRAM})["tokens"]
    ids = encoding.encode_ordinary(PROGRAM)
    [nll] = score(model, [ids], encoding.start)
    assert [token["bits"] for token in found] == pytest.approx(nll.tolist(), abs=1e-4)
    assert "".join(token["text"] for token in found) == PROGRAM
    for token in found:
        [first, *_] = token["likeliest"]
        assert len(token["likeliest"]) == 5 and first[1] == max(p for _, p in token["likeliest"])
        for text, p in token["likeliest"]:
            if text == token["text"]:
                assert p == pytest.approx(2 ** -token["bits"], rel=1e-3)
    assert post(server, "/api/read", {"client": "a", "text": ""}) == {"tokens": [], "of": 0}
    long = post(server, "/api/read", {"client": "a", "text": "x " * 5000})
    assert len(long["tokens"]) == 2047 < long["of"]


def test_the_first_program_is_one_in_which_the_assistants_differ(offer):
    scorer, texts = offer.models.scorer, offer.texts[:-1]
    same = ("obvious", "n = int(input())\n", "")
    for some in (texts, [same, *texts[::-1]]):
        assert telling_first(scorer, some)[0] == texts[0]
        assert sorted(telling_first(scorer, some)) == sorted(some)
    assert telling_first(scorer, []) == []


def test_suggestions_are_those_of_the_assistant_alone(server, offer):
    """At random places, after edits anywhere, from several editors at once, in one batch or not."""
    wrong, right = [], []
    texts = [text for _, text, _ in offer.texts]

    def editor(name):
        rng = random.Random(name)
        for _ in range(12):
            text = rng.choice(texts)
            text = text[:rng.randint(0, len(text))] + rng.choice(["", "x", "\n", " é"])
            assistant = rng.choice(list(offer.models.choices))
            choice = offer.models.choices[assistant]
            eta = rng.choice([0.1, 1, 4]) if choice.needs_eta else math.inf
            body = {"client": name, "assistant": assistant, "text": text, "eta": min(eta, 1000)}
            found = post(server, "/api/suggest", body)["suggestion"]
            same = not text or found == alone(choice, text, eta)
            (right if same else wrong).append((assistant, text, found))

    threads = [threading.Thread(target=editor, args=(str(k),)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(right) == 6 * 12  # an error in a thread would leave some out


def test_the_bits_of_a_suggestion_are_its_own(server, offer):
    """Base stopped at eta spends at most eta, and one more bit lets it write no less."""
    before = 0
    for eta in (0, 0.5, 1, 2, 4, 8):
        found = post(server, "/api/suggest", {"client": "a", "text": "def go(", "eta": eta,
                                              "assistant": "Base stopped at eta"})
        assert found["bits"] <= eta + 1e-5 and found["tokens"] >= before
        before = found["tokens"]
    assert before > 5


def test_a_run_of_ones_own_is_shown(tmp_path):
    out, _ = tiny_run(tmp_path)
    offer = find_offer(Config(out=str(out), device="cpu"))
    assert {"SFT-4", "Empower (0.32)", "Base-10"} <= offer.models.choices.keys()
    assert offer.models.choices["SFT-4"].healing == math.inf
    assert offer.models.choices["SFT-4"].max_tokens == 4
    assert len(offer.games["problems"]) == 6 == len(offer.games["rows"]["SFT-4"])
    assert {"Human alone", "Base"} <= offer.games["rows"].keys()
    given = find_offer(Config(model=str(next(out.glob("stages/base-*"))), device="cpu",
                              assistant=(f"mine={next(out.glob('stages/empower-0*'))}",)))
    assert list(given.models.choices) == ["mine", "Base-10", "Base stopped at eta"]


# ------------------------------------------------------------------- editors


def test_openais_completions(server, offer):
    found = post(server, "/v1/completions", {"prompt": "n = int(", "logprobs": 1, "max_tokens": 3})
    [choice] = found["choices"]
    expected = alone(offer.models.choices["Empower (0.32)"], "n = int(")
    assert expected.startswith(choice["text"]) and choice["finish_reason"] in ("stop", "length")
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert all(p <= 0 for p in logprobs["token_logprobs"])
    assert logprobs["text_offset"][1] == len(logprobs["tokens"][0])
    assert found["usage"]["completion_tokens"] == len(logprobs["tokens"])
    one = post(server, "/v1/completions", {"prompt": ["n = int("], "stop": "(", "suffix": "x"})
    assert "(" not in one["choices"][0]["text"] and "suffix is ignored" in one["warning"]
    assert one["choices"][0]["finish_reason"] == "stop"
    warm = [post(server, "/v1/completions", {"prompt": "def ", "model": "Base-10", "seed": 5,
                                             "temperature": 2})["choices"][0]["text"]
            for _ in range(2)]
    assert warm[0] == warm[1]
    cold = post(server, "/v1/completions", {"prompt": "def ", "model": "Base-10"})
    assert cold["choices"][0]["text"] != warm[0]
    for options in ({"temperature": 1e-40}, {"top_p": 1e-300, "temperature": 2, "seed": 5}):
        greedy = post(server, "/v1/completions", {"prompt": "def ", "model": "Base-10", **options})
        assert greedy["choices"] == cold["choices"]
    assert cold["choices"][0]["finish_reason"] == "length"
    assert post(server, "/", ["n = int("]) == ["n = int(" + expected]


def test_a_stream_of_events_gives_the_same(server):
    body = {"prompt": "n = int(", "logprobs": 0}
    whole = post(server, "/v1/completions", body)["choices"][0]
    status, headers, text = ask(server, "POST", "/v1/completions", {**body, "stream": True})
    assert status == 200 and headers["Content-Type"] == "text/event-stream"
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    parts = [json.loads(event)["choices"][0] for event in events]
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert [p for part in parts for p in part["logprobs"]["token_logprobs"]] == pytest.approx(
        whole["logprobs"]["token_logprobs"])
    assert [at for part in parts for at in part["logprobs"]["text_offset"]] == (
        whole["logprobs"]["text_offset"])


def test_the_openai_package_is_content(server):
    openai = pytest.importorskip("openai", reason="pip install openai")
    client = openai.OpenAI(base_url=f"{server.address}v1", api_key="none", max_retries=0)
    names = [model.id for model in client.models.list()]
    assert names[0] == "Empower (0.32)"
    options = {"model": names[0], "prompt": "n = int(", "temperature": 0}
    whole = client.completions.create(**options, logprobs=1)
    assert whole.choices[0].text == "".join(whole.choices[0].logprobs.tokens)
    stream = client.completions.create(**options, stream=True)
    assert "".join(part.choices[0].text for part in stream) == whole.choices[0].text
    with pytest.raises(openai.BadRequestError, match="n other than 1"):
        client.completions.create(**options, n=2)
    assert client.models.retrieve(names[0]).id == names[0]
    with pytest.raises(openai.NotFoundError, match="choose from Empower"):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="/v1/completions"):
        client.chat.completions.create(model=names[0], messages=[])
    [*parts, last] = client.completions.create(**options, stream=True,
                                               stream_options={"include_usage": True})
    assert last.usage == whole.usage and not last.choices and parts[0].usage is None


def test_an_unknown_model_is_answered_by_the_only_trained_one_which_says_so(server, offer):
    found = post(server, "/v1/completions", {"prompt": "n = int(", "model": "gpt"})
    assert found["model"] == "Empower (0.32)" and "no model 'gpt'" in found["warning"]
    two = {**offer.models.choices, "mine": offer.models.choices["Empower (0.32)"]}
    with pytest.raises(Refused, match="choose from Empower .*, Base-10, .*, mine") as refused:
        Completions(Models(offer.models.scorer, two)).completions({"prompt": "x", "model": "gpt"},
                                                                  Call())
    assert refused.value.status == 404


@pytest.mark.parametrize("most, written", [(0, 0), (1, 1), (16.0, 10), (-1, 10), (None, 10)])
def test_caps_as_clients_give_them(server, most, written):
    """In the middle of a word, whose end counts as a token of the answer."""
    found = post(server, "/v1/completions", {"prompt": "n = int(inp", "model": "Base-10",
                                             "max_tokens": most})
    assert found["usage"]["completion_tokens"] == written + (written > 1)  # Base-10 writes the end
    assert found["choices"][0]["finish_reason"] == "length"                # of a word besides


def test_of_a_long_prompt_the_end_is_read(server):
    """Of 110,000 characters and the next ones, the same tokens: the cache serves them."""
    text = (PROGRAM * 2000)[:110_000]
    found = [post(server, "/v1/completions", {"prompt": text[:k]}) for k in (109_999, 110_000)]
    assert 500 < found[0]["usage"]["prompt_tokens"] <= 2048
    short = post(server, "/v1/completions", {"prompt": text[50_000:]})
    assert short["choices"][0]["text"] == found[1]["choices"][0]["text"]
    assert post(server, "/", [text])[0].startswith(text)
    assert "suggestion" in post(server, "/api/suggest", {"client": "a", "text": text,
                                                         "assistant": "Base-10"})


def test_llama_vims_infill_and_windows_line_ends(server, offer):
    text = "n = int(input())\r\nm = int("
    expected = alone(offer.models.choices["Empower (0.32)"], text.replace("\r", ""))
    body = {"input_prefix": text[:18], "prompt": text[18:], "input_suffix": "\n", "n_predict": 64,
            "stream": False, "samplers": ["top_k", "infill"], "t_max_predict_ms": 1000}
    assert post(server, "/infill", body) == {"content": expected}
    assert post(server, "/", [text]) == [text + expected]  # what it was sent, unchanged


@pytest.mark.parametrize("pieces, stops, expected", [
    (["a = ", "1\n", "b"], ["\n"], ["a = ", "1"]), (["ab", "cd"], ["bc"], ["a"]),
    (["ab", "cd"], ["x"], ["ab", "cd"]), (["ab"], ["a"], []), (["ab", "c"], ["c", "b"], ["a"])])
def test_stop_strings_end_an_answer(pieces, stops, expected):
    job = Job(None, None)
    job.end("length")
    got = list(up_to_stop([(piece, 1.0) for piece in pieces], job, stops))
    assert [text for text, _ in got] == expected
    assert job.outcome == ("length" if expected == pieces else "stop")


# ------------------------------------------------------------------- whom it refuses


@pytest.mark.parametrize("method, path, body, status", [
    ("GET", "/nothing", None, 404), ("GET", "/../page/server.py", None, 404),
    ("GET", "/%2e%2e/README.md", None, 404), ("GET", "/api/read", None, 405),
    ("PUT", "/api/read", {}, 405), ("POST", "/api/read", b"{", 400), ("POST", "/api/read", [], 400),
    ("POST", "/api/read", b"[" * 200_000, 400), ("POST", "/api/read", b"\xff", 400),
    ("POST", "/api/read", {"client": 1, "text": "x"}, 400),
    ("POST", "/api/read", {"client": "a"}, 400),
    ("POST", "/api/read", b'{"client": "a", "text": "\\ud800"}', 400),
    ("POST", "/api/read", {"client": "a", "text": "x" * 100_001}, 413),
    ("GET", "/v1/models/gpt", None, 404), ("POST", "/v1/models", {}, 405),
    ("POST", "/api/read", b" " * (BODY + 1), 413),
    ("POST", "/api/suggest", {"client": "a", "text": "x", "assistant": "no"}, 404),
    ("POST", "/api/suggest", b'{"client": "a", "text": "x", "eta": NaN, "assistant": '
                             b'"Base stopped at eta"}', 400),
    ("POST", "/api/watch", {"row": "Base", "problem": -1}, 400),
    ("POST", "/api/watch", {"row": "Base", "problem": 99}, 404),
    ("POST", "/v1/completions", {"prompt": [1, 2]}, 400), ("POST", "/v1/completions", [], 400),
    ("POST", "/api/watch", b'{"row": "Base", "problem": 1' + b"0" * 400 + b"}", 400),
    ("POST", "/v1/completions", {"prompt": "x", "stop": [""]}, 400),
    ("POST", "/v1/completions", {"prompt": "x", "max_tokens": -2}, 400),
    ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1.5}, 400),
    ("POST", "/v1/completions", {"prompt": "x", "temperature": True}, 400),
    ("POST", "/", {"x": 1}, 400), ("POST", "/", ["a", "b"], 400)])
def test_malformed_requests_get_a_json_error(server, method, path, body, status):
    found, headers, text = ask(server, method, path, body)
    assert (found, headers["Content-Type"]) == (status, "application/json"), text
    assert json.loads(text)["error"]["message"]
    assert ask(server, "GET", "/api/about")[0] == 200


@pytest.mark.parametrize("raw", [
    b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"x" * 70_000 + b"\r\n\r\n",
    b"POST /api/read HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /api/read HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 200 + b"\r\n"])
def test_malformed_http_gets_a_json_error(server, raw):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(raw)
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert '{"error": {"message"' in text
    assert ask(server, "GET", "/api/about")[0] == 200


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1", 200), ("localhost:8765", 200), ("[::1]:8765", 200), ("evil.example", 403),
    ("127.0.0.1.evil.example", 403), ("localhost.evil.example:80", 403), ("", 403), ("[", 403)])
def test_only_its_own_names_reach_it(server, host, status):
    assert ask(server, "GET", "/api/about", Host=host)[0] == status


def test_only_its_own_pages_and_those_allowed_reach_it(server):
    body, own = ["n = int("], f"http://127.0.0.1:{server.server_port}"
    for origin, status in ((own, 200), ("http://evil.example", 403), ("null", 403),
                           ("http://localhost:1", 403), ("http://editor.example", 200)):
        found, headers, _ = ask(server, "POST", "/", body, Origin=origin)
        allowed = headers["Access-Control-Allow-Origin"]
        assert found == status and allowed == (
            origin if origin == "http://editor.example" else None)
    found, headers, _ = ask(server, "OPTIONS", "/", Origin="http://editor.example")
    assert found == 200 and "Content-Type" in headers["Access-Control-Allow-Headers"]
    assert ask(server, "OPTIONS", "/", Origin="http://evil.example")[0] == 403


def test_a_request_that_does_not_arrive_is_ended(server, monkeypatch):
    monkeypatch.setattr(page.server, "SECONDS", 0.3)
    for begin in (b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n["):
        with socket.create_connection(("127.0.0.1", server.server_port), 5) as connection:
            connection.sendall(begin)
            while connection.recv(65536):
                pass  # until the server hangs up: else this would wait for 5 seconds, and fail


def test_an_answer_may_take_longer_than_a_request(server, monkeypatch):
    monkeypatch.setattr(page.server, "SECONDS", 0.3)
    monkeypatch.setitem(server.routes, ("POST", "/slow"),
                        lambda body, begin: time.sleep(0.8) or {"done": True})
    assert post(server, "/slow", {}) == {"done": True}


def test_the_address_can_be_typed():
    with Server(("0.0.0.0", 0), {}) as server:
        host = urlsplit(server.address).hostname
        assert ipaddress.ip_address(host) and host != "0.0.0.0" and server.knows(host)
        assert server.knows(f"{socket.gethostname()}.local:80")


def test_a_client_that_does_not_read_its_answer_is_ended(server, monkeypatch):
    """Else it would hold a thread for ever."""
    monkeypatch.setattr(page.server.Handler, "timeout", 0.5)
    monkeypatch.setitem(server.routes, ("POST", "/long"), lambda body, begin: ["x" * 10**7])
    until(lambda: server.free._value == page.server.THREADS)
    with socket.create_connection(("127.0.0.1", server.server_port), 20) as connection:
        connection.sendall(b"POST /long HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        until(lambda: server.free._value == page.server.THREADS - 1)
        until(lambda: server.free._value == page.server.THREADS)


def test_too_many_requests_at_a_time_are_refused(server):
    until(lambda: server.free._value == page.server.THREADS)
    for _ in range(page.server.THREADS - 1):  # all but one are at work
        server.free.acquire()
    with socket.create_connection(("127.0.0.1", server.server_port), 20) as first:
        first.sendall(b"GET ")
        until(lambda: server.free._value == 0)
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(server, "GET", "/")
    until(lambda: server.free._value == 1)
    assert ask(server, "GET", "/")[0] == 200
    for _ in range(page.server.THREADS - 1):
        server.free.release()


def test_a_fault_of_ours_is_reported_and_ends_nothing(server, monkeypatch, capsys):
    def fault(body, begin):
        raise KeyError("secret")
    monkeypatch.setitem(server.routes, ("POST", "/fault"), fault)
    status, _, text = ask(server, "POST", "/fault", {})
    assert status == 500 and "secret" not in text and "KeyError" in capsys.readouterr().err


def test_bad_settings_are_refused_in_one_sentence(tmp_path):
    for arguments, word in ((("--port", "70000"), "65535"), (("--host", "nowhere.invalid"), "cannot"),
                            (("--out", tmp_path), "no finished run"), (("--assistant", "x"), "NAME"),
                            (("--model", tmp_path / "x"), "x")):
        status, stdout, stderr = in_process("page", "--no-browser", *arguments)
        assert status == 2 and stdout == "" and word in stderr and stderr.count("\n") == 1, stderr
    assert is_loopback("127.0.0.2") and is_loopback("::1") and not is_loopback("0.0.0.0")


# ------------------------------------------------------------------- the line


def answers(line, job):
    """What a job is given, once it has ended."""
    return list(line.answer(job))


class Held:
    """Work that waits: the first job is at work until `release`, then each round ends one."""

    def __init__(self):
        self.line, self.busy, self.release, self.rounds = Line(), threading.Event(), \
            threading.Event(), []
        self.threads, self.found = [], {}
        self.ask("first")
        assert self.busy.wait(20)

    def work(self, jobs):
        self.busy.set()
        assert self.release.wait(20)
        self.rounds.append([job.item for job in jobs])
        jobs[0].give(jobs[0].item)
        jobs[0].end("stop")

    def ask(self, name, client="", key=None, gone=bool):
        job = Job(self.work, name, client, key, gone)
        self.threads.append(threading.Thread(
            target=lambda: self.found.update({name: answers(self.line, job)})))
        self.threads[-1].start()
        until(lambda: job in self.line.jobs or job.ended)

    def end(self):
        self.release.set()
        for thread in self.threads:
            thread.join(20)
        return self.rounds[1:]


def test_a_newer_request_takes_the_place_of_an_older_one():
    held = Held()
    for name, key in (("old", "a"), ("other", "b"), ("new", "a")):
        held.ask(name, key=key)
    until(lambda: "old" in held.found)  # before the line has moved
    held.end()
    assert held.found == {"first": ["first"], "old": [], "other": ["other"], "new": ["new"]}


def test_the_newest_request_of_a_client_goes_first_and_no_client_waits_for_another_s_older_ones():
    held = Held()
    for name, client in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a"), ("b2", "b")):
        held.ask(name, client)
    assert [jobs[0] for jobs in held.end()] == ["a3", "b2", "a2", "b1", "a1"]


def test_a_request_whose_client_has_hung_up_is_not_served():
    held, left = Held(), threading.Event()
    held.ask("gone", gone=left.is_set)
    held.ask("stays", key="a")
    held.ask("late", key="a", gone=lambda: True)  # an older one, whose thread was slow
    left.set()
    held.end()
    assert held.found == {"first": ["first"], "gone": [], "late": [], "stays": ["stays"]}
    assert held.rounds == [["first"], ["stays"]]


def test_a_full_line_and_a_fault_are_told(monkeypatch):
    def work(jobs):
        for job in jobs:
            job.give(1 / job.item)
            job.end()

    line = Line()
    with pytest.raises(ZeroDivisionError):
        answers(line, Job(work, 0))
    assert answers(line, Job(work, 5)) == [0.2]  # it goes on
    monkeypatch.setattr(page.line, "IN_LINE", 0)
    with pytest.raises(Busy, match="too many"):
        answers(line, Job(work, 1))
    monkeypatch.undo()
    monkeypatch.setattr(page.line, "PATIENCE", 0.1)
    with pytest.raises(Busy, match="no answer"):
        answers(line, Job(lambda jobs: time.sleep(0.5), 0))


def test_a_fault_of_one_request_is_not_another_s():
    """Those that fail together are served one by one."""
    def work(jobs):
        held.busy.set()
        assert held.release.wait(20)
        values = [1 / job.item for job in jobs]
        for job, value in zip(jobs, values):
            job.give(value)
            job.end()

    held = Held.__new__(Held)
    held.line, held.busy, held.release = Line(), threading.Event(), threading.Event()
    jobs = [Job(work, item) for item in (8, 0, 2, 4)]
    found = {}

    def ask(job):
        try:
            found[job.item] = answers(held.line, job)
        except ZeroDivisionError:
            found[job.item] = "fault"

    threads = [threading.Thread(target=ask, args=(job,)) for job in jobs]
    threads[0].start()
    assert held.busy.wait(20)
    for thread in threads[1:]:
        thread.start()
    until(lambda: len(held.line.jobs) == 4)
    held.release.set()
    for thread in threads:
        thread.join(20)
    assert found == {8: [0.125], 0: "fault", 2: [0.5], 4: [0.25]}


# ------------------------------------------------------------------- reading and writing


def test_the_cache_reads_only_what_changed(offer, monkeypatch):
    """After a key, two tokens are read; and a second editor takes a row of its own."""
    read, model = [], offer.models.scorer.model
    hidden = type(model).hidden
    monkeypatch.setattr(type(model), "hidden", lambda self, ids, cache=None: read.append(
        ids.shape[1]) or hidden(self, ids, cache))
    models = Models(offer.models.scorer, offer.models.choices)
    for text, most in ((PROGRAM, 100), (PROGRAM + "p", 3), (PROGRAM + "pr", 3), (PROGRAM[:60], 3)):
        read.clear()
        models.suggest("Base-10", "a", Request(text))
        assert read[0] <= most
    models.suggest("Base-10", "b", Request("def main():\n    x = 1\n"))
    read.clear()
    models.suggest("Base-10", "a", Request(PROGRAM[:61]))
    assert read[0] <= 3  # b took another row


def at_once(models, name, texts):
    """What an assistant suggests after texts that are in one round."""
    jobs = [models.ask(name, Request(text)) for text in texts]
    for _ in range(200):
        jobs[0].work([job for job in jobs if not job.ended])
        if all(job.ended for job in jobs):
            break
    return ["".join(part[0] for part in iter(job.given.get, None)) for job in jobs]


def test_rows_are_few_if_a_model_is_large_and_others_wait(offer, monkeypatch):
    monkeypatch.setattr(page.assistants, "MEMORY", 1)
    models = Models(offer.models.scorer, offer.models.choices)
    choice, texts = models.choices["Base-10"], ("n = int(", "def go(", "for i")
    assert models.writers[choice.checkpoint.model.name].size == 1
    assert at_once(models, "Base-10", texts) == [alone(choice, text) for text in texts]


def test_what_texts_have_in_common_is_read_once_and_in_parts(offer, monkeypatch):
    """Twenty keys at the end of a text that no row holds: its tokens are read once, not 20 times."""
    read, model = [], offer.models.scorer.model
    hidden = type(model).hidden
    monkeypatch.setattr(type(model), "hidden", lambda self, ids, cache=None: read.append(
        ids.shape) or hidden(self, ids, cache))
    monkeypatch.setattr(page.assistants, "PART", 64)
    models = Models(offer.models.scorer, offer.models.choices)
    choice, text = models.choices["Base-10"], (PROGRAM * 9)[:400]
    texts = [text + "x = items[0]\nprint("[:k] for k in range(20)]
    written = at_once(models, "Base-10", texts)
    shapes = read[:]  # before those of each text alone
    assert written == [alone(choice, text) for text in texts]
    parts = 1 + len(choice.checkpoint.encoding.encode_ordinary(text)) // 64
    assert [rows for rows, columns in shapes[:parts - 1]] == [1] * (parts - 1)
    assert all(columns <= 64 for rows, columns in shapes[:parts]), shapes[:parts]
    assert all(columns <= 16 + 9 for rows, columns in shapes[parts:]), shapes[parts:]


def test_long_programs_keep_most_of_their_window():
    before = None
    moved = 0
    for n in range(1, 400):
        ids = end_of(list(range(n)), 80)
        assert ids[-1] == n - 1 and (len(ids) == n or 40 <= len(ids) <= 80)
        moved += before is not None and ids[0] != before
        before = ids[0]
    assert 5 <= moved <= 8  # not at every token


@pytest.mark.parametrize("small, threads", [(page.server.SMALL, [1]), (0, [])])
def test_small_models_get_one_thread(monkeypatch, capsys, small, threads):
    def ended(server):
        raise KeyboardInterrupt

    found = []
    monkeypatch.setattr(page.server, "SMALL", small)
    monkeypatch.setattr(page.server.Server, "serve_forever", ended)
    monkeypatch.setattr(page.server.torch, "set_num_threads", found.append)
    page.server.page(Config(device="cpu", port=0, no_browser=True))
    assert found == threads
    assert capsys.readouterr().out.endswith("\nThe page has ended.\n")
