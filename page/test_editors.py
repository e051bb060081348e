"""What editor plugins do to the server: requests that are given up, streams, and their habits."""

import http.client
import json
import socket
import threading

import pytest

import page.line
from page import test_server
from page.assistants import Writer
from page.server import Server
from page.test_server import alone, ask, post
from support.test_helpers import until

offer, server = test_server.offer, test_server.server  # fixtures

def sent(server, path, body, *headers):
    """The connection on which a request was sent."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.server_port), 20)
    connection.sendall("\r\n".join([
        f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{server.server_port}",
        "Content-Type: application/json", f"Content-Length: {len(content)}", *headers, "",
        ""]).encode() + content)
    return connection


def received(connection, end=None):
    """What comes on a connection, up to its end or to some bytes."""
    text = b""
    while end is None or end not in text:
        part = connection.recv(65536)
        if not part:
            break
        text += part
    return text


def event_texts(lines):
    """The texts of the events of a stream, as both plugins below read them: a line at a time."""
    texts = []
    for line in lines.decode().split("\n"):
        try:
            texts.append(json.loads(line.removeprefix("data:"))["choices"][0]["text"])
        except (ValueError, LookupError):
            pass  # a header, a comment, the end
    return texts


class Gate:
    """Lets the models take one step for each `open`, and notes for which prompts."""

    def __init__(self, monkeypatch):
        self.free, self.steps, step = threading.Semaphore(0), [], Writer.step

        def gated(writer, jobs, part):
            self.steps.append([job.item.request.text for job in jobs])
            assert self.free.acquire(timeout=20)
            step(writer, jobs, part)

        monkeypatch.setattr(Writer, "step", gated)

    def open(self, times=1000):
        self.free.release(times)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open()  # whatever is still at work


# ------------------------------------------------------------------- requests that are given up


@pytest.mark.parametrize("path", ["/v1/completions", "/api/suggest", "/", "/infill"])
def test_what_nobody_waits_for_is_not_computed(server, offer, gate, path):
    """Twenty keys, each connection closed before the next: the last is answered as if alone."""
    def body(text):
        return {"/": [text], "/infill": {"prompt": text}}.get(path, {
            "prompt": text, "text": text, "client": text, "assistant": "Empower (0.32)"})

    text, line = "n = int(input())\nitems = ", offer.models.line
    first = sent(server, path, body("x = "))
    until(lambda: gate.steps)
    keys = [text[:k] for k in range(5, 25)]
    for key in keys:
        connection = sent(server, path, body(key))
        until(lambda: any(job.item.request.text == key for job in line.jobs))
        connection.close()
    first.close()
    last = sent(server, path, body(text))
    until(lambda: any(job.item.request.text == text for job in line.jobs))
    gate.open()
    assert b"200 OK" in received(last)
    assert gate.steps[0] == ["x = "] and gate.steps[1:] == [[text]] * len(gate.steps[1:])


def test_a_request_that_is_at_work_goes_on_with_a_newer_one(server, gate):
    """Neither waits for the end of the other."""
    older = sent(server, "/v1/completions", {"prompt": "n = int(", "model": "Base-10"})
    until(lambda: gate.steps)
    newer = sent(server, "/v1/completions", {"prompt": "def go(", "model": "Base-10"})
    until(lambda: len(line_of(server).jobs) == 2)
    gate.open()
    assert b"200 OK" in received(newer) and b"200 OK" in received(older)
    assert gate.steps[1] == ["def go(", "n = int("]  # the newest of a client first


def line_of(server):
    return server.routes["POST", "/v1/completions"].__self__.models.line


# ------------------------------------------------------------------- streams


def test_an_event_comes_as_soon_as_its_token(server, gate):
    stream = sent(server, "/v1/completions", {"prompt": "n = int(", "model": "Base-10",
                                              "stream": True})
    gate.open(2)  # the word at the caret is healed, and one token is written
    [first] = event_texts(received(stream, b"}]}\n\n"))
    until(lambda: len(gate.steps) == 3)  # the next one waits
    gate.open()
    assert first + "".join(event_texts(received(stream))) == post(server, "/v1/completions", {
        "prompt": "n = int(", "model": "Base-10"})["choices"][0]["text"]


def test_a_slow_model_keeps_the_connection_open(server, gate, monkeypatch):
    monkeypatch.setattr(page.line, "QUIET", 0.05)
    stream = sent(server, "/v1/completions", {"prompt": "n = int(", "stream": True})
    assert b"200 OK" in received(stream, b"\n: at work\n\n")
    gate.open()
    assert received(stream).endswith(b"data: [DONE]\n\n")


def test_a_stream_that_fails_says_so(server, gate, monkeypatch, capsys):
    """At once with a status; later as an event, since the status has been sent."""
    monkeypatch.setattr(page.line, "PATIENCE", 0.2)
    for quiet, status in ((1, b" 503 "), (0.05, b" 200 ")):
        monkeypatch.setattr(page.line, "QUIET", quiet)
        answer = received(sent(server, "/v1/completions", {"prompt": "n = int(", "stream": True}))
        assert status in answer.split(b"\r\n")[0] and b'"error": {"message": "no answer' in answer
    gate.open()
    monkeypatch.undo()

    def fault(body, call):
        yield b": at work\n\n"
        raise KeyError("secret")
    monkeypatch.setitem(server.routes, ("POST", "/fault"), fault)
    _, _, text = ask(server, "POST", "/fault", {})
    assert text.endswith('server; its terminal says which"}}\n\n') and "secret" not in text
    assert "KeyError" in capsys.readouterr().err


def test_a_stop_string_ends_the_work(server, gate):
    """Not only the answer."""
    stream = sent(server, "/v1/completions", {"prompt": "n = int(", "model": "Base-10",
                                              "stream": True, "stop": ["("]})
    gate.open(4)  # of eleven
    answer = received(stream)
    assert b'"finish_reason": "stop"' in answer and "(" not in "".join(event_texts(answer))
    gate.open()
    until(lambda: not line_of(server).jobs)
    assert len(gate.steps) <= 5


# ------------------------------------------------------------------- two plugins
# Their requests were written by hand from what their source sends; the plugins were not run.


def shows(answer):
    """What both of them show of an answer: the texts of its events."""
    return "".join(event_texts(answer))


def test_minuet_gets_a_suggestion_for_the_last_of_many_keys(server, offer, gate):
    """minuet-ai.nvim starts curl for each key and ends it at the next; it shows what is not blank."""
    def key(text):
        return sent(server, "/v1/completions", {
            "model": "Empower (0.32)", "stream": True, "prompt": text}, "User-Agent: curl/8.5.0",
            "Accept: application/json", "Authorization: Bearer empower")

    text = "n = int(input())\nfor i in ran"
    for k in range(10, 0, -1):
        connection = key(text[:-k])
        until(lambda: gate.steps)
        connection.close()
    last = key(text)
    gate.open()
    shown = shows(received(last))
    assert shown == alone(offer.models.choices["Empower (0.32)"], text) and shown.strip()


def test_continue_gets_a_suggestion_with_its_comment_and_its_stops(server, offer):
    """A comment with the file's name comes first; it asks for 4096 tokens and gives stop strings."""
    text = "# Path: sum.py\nn = int(input())\nfor i in ran"
    stops = ["\n\n", "\r\n\r\n", "/src/", "#- coding: utf-8", "```"]
    answer = received(sent(server, "/v1/completions", {
        "model": "Empower (0.32)", "prompt": text, "max_tokens": 4096, "temperature": 0.01,
        "stop": stops, "stream": True, "stream_options": {"include_usage": True}},
        "Authorization: Bearer none", "api-key: none", "x-stainless-lang: js"))
    expected = alone(offer.models.choices["Empower (0.32)"], text)
    assert shows(answer) == expected.split("\n\n")[0] and shows(answer).strip()


# ------------------------------------------------------------------- habits of clients


def test_bodies_in_chunks_and_clients_that_ask_whether_to_send_one(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    parts = [b'{"prompt": ', b'"n = int("}']
    connection.request("POST", "/v1/completions", iter(parts), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})
    found = json.load(connection.getresponse())
    assert found["choices"] == post(server, "/v1/completions", {"prompt": "n = int("})["choices"]
    raw = socket.create_connection(("127.0.0.1", server.server_port), 20)
    raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                b"Content-Length: 22\r\n\r\n")
    assert received(raw, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.sendall(b"".join(parts))
    assert b"200 OK" in received(raw)


@pytest.mark.parametrize("headers, body, said", [
    ("Transfer-Encoding: chunked", b"5\r\n[1,2]\r\n0\r\nTrailer: x\r\n\r\n", b"list of one"),
    ("Transfer-Encoding: chunked", b"x\r\n", b"no length"),
    ("Transfer-Encoding: chunked", b"5\r\n[1", b"ended early"),
    ("Transfer-Encoding: chunked", b"f00000\r\n", b"at most"),
    ("Transfer-Encoding: gzip", b"", b"only Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked\r\nContent-Length: 5", b"[1,2]", b"give a Content-Length, or")])
def test_what_is_wrong_with_a_body_is_said(server, headers, body, said):
    raw = socket.create_connection(("127.0.0.1", server.server_port), 20)
    raw.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n%s" % (headers.encode(), body))
    raw.shutdown(socket.SHUT_WR)
    answer = received(raw)
    assert said in answer and answer.startswith(b"HTTP/1.1 4")


def test_addresses_as_clients_spell_them(server):
    name = "/v1/models/Empower%20(0.32)"
    for path in ("/v1/models", "/v1/models/", name, name + "/", "/v1/models?x=1"):
        status, _, text = ask(server, "GET", path)
        assert status == 200 and '"Empower (0.32)"' in text
    assert post(server, "/v1/completions/", {"prompt": "n = "})["choices"]
    status, _, text = ask(server, "POST", "/v1/chat/completions", {"messages": []})
    assert status == 404 and "send the code before the caret to /v1/completions" in text


def test_more_names_of_this_machine_can_be_allowed(server):
    name = "host.docker.internal"
    assert ask(server, "GET", "/v1/models", Host=f"{name}:80")[0] == 403
    with Server(("127.0.0.1", 0), {}, hosts=[name.upper()]) as other:
        assert other.knows(f"{name}:80") and not other.knows("evil.example")


def test_headers_of_openais_package_are_allowed_to_pages_that_are(server):
    wanted = {"Access_Control_Request_Headers": "authorization,x-stainless-os,x-evil",
              "Access_Control_Request_Method": "POST"}
    for origin, allowed in (("http://editor.example", True), ("http://evil.example", False)):
        status, headers, _ = ask(server, "OPTIONS", "/v1/completions", Origin=origin, **wanted)
        found = headers["Access-Control-Allow-Headers"] or ""
        assert ("x-stainless-os" in found) == allowed == (status == 200) and "evil" not in found
