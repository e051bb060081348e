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
import torch

import page.server
from empower import score
from model import KVCache, sample
from page.assistants import Busy, EditorCaches, Line, Models, Request
from page.completions import cut
from page.offered import find_offer
from page.server import BODY, Config, Server, is_loopback
from page.api import Api
from page.completions import Completions
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


def test_suggestions_are_those_of_the_assistant_alone(server, offer):
    """At random places, after edits anywhere, from several editors at once, in one batch or not."""
    wrong, right = [], []
    texts = [text for _, text in offer.texts]

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
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.completions.create(model="gpt", prompt="x")


@pytest.mark.parametrize("pieces, stops, expected", [
    (["a = ", "1\n", "b"], ["\n"], ["a = ", "1"]), (["ab", "cd"], ["bc"], ["a"]),
    (["ab", "cd"], ["x"], ["ab", "cd"]), (["ab"], ["a"], []), (["ab", "c"], ["c", "b"], ["a"])])
def test_stop_strings_cut_a_suggestion(pieces, stops, expected):
    from page.assistants import Suggestion
    found = Suggestion("".join(pieces), pieces, [1.0] * len(pieces), False)
    got, costs, ended = cut(found, stops)
    assert got == expected and len(costs) == len(got) and ended == (expected != pieces)


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
    ("POST", "/api/read", b" " * (BODY + 1), 413),
    ("POST", "/api/suggest", {"client": "a", "text": "x", "assistant": "no"}, 404),
    ("POST", "/api/suggest", b'{"client": "a", "text": "x", "eta": NaN, "assistant": '
                             b'"Base stopped at eta"}', 400),
    ("POST", "/api/watch", {"row": "Base", "problem": -1}, 400),
    ("POST", "/api/watch", {"row": "Base", "problem": 99}, 404),
    ("POST", "/v1/completions", {"prompt": [1, 2]}, 400), ("POST", "/v1/completions", [], 400),
    ("POST", "/api/watch", b'{"row": "Base", "problem": 1' + b"0" * 400 + b"}", 400),
    ("POST", "/v1/completions", {"prompt": "x", "stop": [""]}, 400),
    ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 0}, 400),
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


def test_a_newer_request_takes_the_place_of_an_older_one():
    line, busy, release, found = Line(), threading.Event(), threading.Event(), []

    def slow(items):
        busy.set()
        release.wait(60)
        return items

    def late(name, key, item):
        found.append((name, line.ask(key, "group", lambda items: [len(items)] * len(items), item)))

    threads = [threading.Thread(target=line.ask, args=("first", "slow", slow, 0))]
    threads[0].start()
    assert busy.wait(20)
    for name, key in (("old", "a"), ("other", "b"), ("new", "a")):
        threads.append(threading.Thread(target=late, args=(name, key, 0)))
        threads[-1].start()
        until(lambda: key in line.waiting and (
            name != "new" or any(n == "old" for n, _ in found)))
    release.set()
    for thread in threads:
        thread.join(10)
    assert dict(found) == {"old": None, "other": 2, "new": 2}  # the last two in one batch


def test_a_full_line_and_a_fault_are_told(monkeypatch):
    line = Line()
    with pytest.raises(ZeroDivisionError):
        line.ask("a", "g", lambda items: 1 / 0, 0)
    assert line.ask("a", "g", lambda items: items, 5) == 5  # it goes on
    monkeypatch.setattr(page.assistants, "IN_LINE", 0)
    with pytest.raises(Busy, match="too many"):
        line.ask("a", "g", lambda items: items, 0)
    monkeypatch.undo()
    monkeypatch.setattr(page.assistants, "PATIENCE", 0.1)
    with pytest.raises(Busy, match="no answer"):
        line.ask("a", "g", lambda items: time.sleep(1) or items, 0)


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


def test_rows_are_few_if_a_model_is_large_and_a_batch_is_split(offer, monkeypatch):
    model = offer.models.scorer.model
    monkeypatch.setattr(page.assistants, "MEMORY", 1)
    assert EditorCaches(model).size == 1
    models = Models(offer.models.scorer, offer.models.choices)
    choice = models.choices["Base-10"]
    found = models._suggest(choice, [Request("n = int("), Request("def go("), Request("for i")])
    assert [each.text for each in found] == [alone(choice, text) for text in (
        "n = int(", "def go(", "for i")]


def test_long_programs_keep_most_of_their_window(offer, monkeypatch):
    monkeypatch.setattr(page.assistants, "WINDOW", 100)
    caches = EditorCaches(offer.models.scorer.model)
    before = None
    moved = 0
    for n in range(1, 400):
        ids = caches.window_of(list(range(n)), 20)
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
