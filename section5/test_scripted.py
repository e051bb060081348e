"""For tests: a real HTTP server on 127.0.0.1 that answers by a script, well or badly."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def chat(text, tokens=3):
    """The JSON of a chat answer."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}],
            "usage": {"completion_tokens": tokens}}


def completion(text, tokens=3):
    """The JSON of a completion."""
    return {"choices": [{"text": text}], "usage": {"completion_tokens": tokens}}


MODELS = {"data": [{"id": "tiny"}, {"id": "other"}]}


class Script:
    """What a server does. answer: a function of (path, body) that returns what is sent.

    It returns JSON for status 200, (status, JSON or bytes, headers), or one of the words "drop"
    (closes the connection), "half" (half an answer), "drip" (a byte every tenth of a second).
    requests: [(path, body, headers)] so far.
    """

    def __init__(self, answer):
        self.answer, self.requests, self.lock = answer, [], threading.Lock()

    def respond(self, handler):
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        with self.lock:
            self.requests.append((handler.path, body, dict(handler.headers)))
        if handler.path.split("?")[0].endswith("/models"):
            found = MODELS
        else:
            found = self.answer(handler.path, body)
        if found == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        word = found if isinstance(found, str) else ""
        status, content, headers = found if isinstance(found, tuple) else (200, found, {})
        if word:
            content = chat("late")
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client has given up
            if word == "half":
                handler.wfile.write(content[:len(content) // 2])
                handler.close_connection = True
            elif word == "drip":
                for byte in content:
                    handler.wfile.write(bytes([byte]))
                    handler.wfile.flush()
                    time.sleep(0.1)
            else:
                handler.wfile.write(content)


@contextlib.contextmanager
def serving(answer, port=0):
    """A server that answers by a script: yields (its address, its Script)."""
    script = Script(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            script.respond(self)

        do_POST = do_GET

        def log_message(self, *ignored):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *ignored):
            pass

    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", script
    finally:
        server.shutdown()
        server.server_close()
