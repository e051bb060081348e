"""python empower.py page: a local page to read, write and watch, and an endpoint for editors.

One thread answers each request, and page/assistants.py puts them in line for the models. The
server answers only on this machine unless --host says otherwise, only under its own name (a page
elsewhere that resolves to this address is refused), and only to its own pages (Origin), so that a
site in another tab cannot use it. Everything that is refused is refused with a JSON error, unless
too many requests are at work: the next one is then closed.
"""

import dataclasses
import functools
import ipaddress
import json
import re
import select
import socket
import sys
import threading
import time
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

from page.api import Api
from page.completions import Completions
from page.line import Busy, Call
from page.offered import find_offer
from page.refused import Refused
from page.trial import Trial
from page.whole import static_page, whole_page, with_policy
from realcode.given import DTYPE
from support.cli import UserError, check_ranges, checked, flag
from support.files import write_text

BODY = 2**20         # bytes of a request at most
THREADS = 128        # requests at a time at most
SECONDS = 20         # for a request to arrive whole
SMALL = 10_000_000   # weights of a model: fewer gain nothing from a second thread


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of `page`."""

    out: str = flag("", "folder of a finished run to show, instead of the models of the page")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    model: str = flag("", "a checkpoint folder or GGUF file: the scorer, and Base without training")
    dtype: str = flag("auto", DTYPE)
    assistant: tuple = flag((), "NAME=DIR: assistants of your own (checkpoints from finetune)")
    max_suggestion: int = flag(60, "cap on a suggestion, tokens", 1)
    study: str = flag("", "folder of a user study: serves only the study, see page/README.md")
    host: str = flag("127.0.0.1", "address to listen on; another one lets other machines in")
    port: int = flag(8765, "port; 0 for any that is free", 0)
    allow_origin: tuple = flag((), "origins of other pages that may use this server")
    allow_host: tuple = flag((), "more names of this machine, as host.docker.internal")
    static: str = flag("", "writes FILE, one HTML page that needs no Python, and ends")
    no_browser: bool = flag(False, "do not open a browser")

    def __post_init__(self):
        check_ranges(self)
        if self.port > 65535:
            raise UserError(f"--port is {self.port}: give a number from 0 to 65535")
        for name in ("out", "model", "assistant", "study"):
            if self.static and getattr(self, name):
                raise UserError(f"--static writes the page with its own small models: omit --{name}"
                                ", or serve the page without --static")


def page(cfg):
    """In your browser: Figure 1 alive, an editor with suggestions, episodes, the user study."""
    if cfg.static:
        return write_static(cfg)
    trial = Trial.open(cfg.study) if cfg.study else None
    offer = find_offer(cfg)
    models = [choice.checkpoint.model for choice in offer.models.choices.values()]
    if max(sum(weight.numel() for weight in model.parameters()) for model in models) < SMALL:
        torch.set_num_threads(1)  # a suggestion then takes two thirds of the time (page/load.py)
    routes = trial.routes(offer.models) if trial else {
        **Api(offer).routes(), **Completions(offer.models).routes()}
    try:
        server = Server((cfg.host, cfg.port), routes, cfg.allow_origin,
                        cfg.allow_host)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {cfg.host}, port {cfg.port} ({error}): choose another "
                        "--port, or --port 0 for any that is free") from None
    try:
        announce(cfg, server.address, trial)
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nThe page has ended.")
    finally:
        server.server_close()


def write_static(cfg):
    """Writes the page of --static."""
    html = static_page(find_offer(cfg))
    checked(write_text, Path(cfg.static), html)
    print(f"{cfg.static}: {len(html.encode()) / 1e6:.1f} MB, opens in any browser, without network "
          "or Python")


def announce(cfg, address, trial):
    """Prints what a page serves at which address, and opens a browser."""
    print(address)
    print(trial.announcement() if trial else "Reading, writing and watching; /v1/completions for "
          "editors (page/README.md). Ctrl-C ends it.")
    if not is_loopback(cfg.host):
        print(f"empower.py: --host {cfg.host}: every machine that reaches this one can use the "
              "page, unencrypted; use it in a network that you trust", file=sys.stderr)
    if not cfg.no_browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def is_loopback(host):
    """Whether only this machine can reach this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host, family):
    """An address that one can type: for 0.0.0.0 and ::, that of this machine in its network."""
    if host not in ("0.0.0.0", "::"):
        return host
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connecting sends nothing
        try:
            probe.connect(("192.0.2.1" if host == "0.0.0.0" else "2001:db8::1", 9))
            return probe.getsockname()[0]
        except OSError:  # no network
            return "127.0.0.1" if host == "0.0.0.0" else "::1"


# ------------------------------------------------------------------- the server


class Server(ThreadingHTTPServer):
    """routes: {(method, path): function of the request's JSON and its `Call`}.

    It returns JSON, bytes that are the page, or an iterator of server-sent events. A path that ends
    in / serves those below it, too: what follows it is the request's {"path": ...}.
    """

    daemon_threads, request_queue_size = True, 256

    def __init__(self, address, routes, origins=(), hosts=()):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.routes, self.origins = routes, set(origins)
        self.free = threading.BoundedSemaphore(THREADS)
        self.late = {}  # {connection: a timer that ends it}
        host = socket.gethostname().lower()
        self.names = {"localhost", host, f"{host}.local", *map(str.lower, (address[0], *hosts))}
        self.html, self.policy = with_policy(whole_page())
        super().__init__(address, Handler)
        host = reachable(address[0], self.address_family)
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def process_request(self, request, client_address):
        if not self.free.acquire(blocking=False):  # too many: refused without a thread
            request.close()
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        late = self.late[request] = threading.Timer(SECONDS, hang_up, [request])
        late.daemon = True
        late.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.arrived(request)
            self.free.release()

    def arrived(self, request):
        """Called once a request is whole: an answer may take its time."""
        if late := self.late.pop(request, None):
            late.cancel()

    def handle_error(self, request, client_address):
        """An error outside of the routes, as when a client hangs up: no traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            print(f"empower.py: a request failed: {sys.exc_info()[1]!r}", file=sys.stderr)

    def knows(self, host):
        """Whether a Host header is ours. Addresses are: only names can be pointed elsewhere."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name.lower() in self.names:
                return True
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return False


def has_left(connection):
    """Whether a client has hung up, or will send nothing more: nobody waits for its answer."""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):  # it was reset, or closed by us
        return True


def hang_up(connection):
    """Ends a connection whose request does not arrive."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended


class Handler(BaseHTTPRequestHandler):
    """One request: checked, routed, answered."""

    server_version, sys_version = "empower", ""
    protocol_version = "HTTP/1.1"    # else `Expect: 100-continue` is not answered: a second's wait
    timeout = SECONDS                # for a client to take what it is sent
    disable_nagle_algorithm = True   # an event is sent at once

    def log_message(self, *arguments):
        pass

    def send_error(self, code, message=None, explain=None):
        """What the standard library refuses, in JSON too."""
        self.close_connection = True
        self.reply(code, {"error": {"message": message or "this request is malformed"}})

    def answer(self):
        """Answers a request of any method."""
        try:
            self.check_sender()
            status, content = 200, self.content()
        except (ConnectionError, TimeoutError):
            return  # the client has gone
        except Exception as error:
            status, content = self.failure(error)
        self.reply(status, content)

    def failure(self, error):
        """(status, JSON) of what went wrong; a fault of ours must not end the server."""
        if isinstance(error, (Refused, Busy)):
            return getattr(error, "status", 503), {"error": {"message": str(error)}}
        print(f"empower.py: {self.command} {self.path.split('?')[0]!r} failed: "
              f"{type(error).__name__}: {error}", file=sys.stderr)
        return 500, {"error": {"message": "an error in the server; its terminal says which"}}

    do_GET = do_POST = do_OPTIONS = do_HEAD = do_PUT = do_DELETE = do_PATCH = answer

    def check_sender(self):
        """Raises Refused unless the request is for this server and from a page of ours."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.knows(hosts[0]):
            raise Refused(403, "this server does not answer under that name: use its address")
        origin = self.headers.get("Origin")
        if origin and origin not in {f"http://{hosts[0]}", *self.server.origins}:
            raise Refused(403, f"requests from {origin[:100]} are refused; --allow-origin allows "
                               "them")

    def content(self):
        """The answer of the route: plain data, bytes of the page, or an iterator of events."""
        path = self.path.split("?")[0]
        path = path.rstrip("/") or "/"
        if self.command == "OPTIONS":
            return {}
        routes, more = self.server.routes, {}
        if path not in {known for _, known in routes} and path.count("/") > 1:
            folder, _, name = path.rpartition("/")
            path, more = f"{folder}/", {"path": unquote(name)}
        route = routes.get((self.command, path))
        if self.command in ("GET", "HEAD") and path == "/":
            return self.server.html
        if route is None:
            known = sorted(m for m, p in routes if p == path)
            raise Refused(405 if known else 404, f"{self.path[:100]} takes {', '.join(known)} only"
                          if known else f"there is no {self.path[:100]} here")
        body = self.body() if self.command == "POST" else more
        self.server.arrived(self.connection)
        return route(body, Call(time.monotonic(),  # what dripped in has not waited yet
                                self.client_address[0],
                                functools.partial(has_left, self.connection)))

    def body(self):
        """The JSON of a request."""
        length, chunked = self.headers.get("Content-Length"), self.headers.get("Transfer-Encoding")
        if chunked and (length or chunked.lower() != "chunked"):
            raise Refused(400, "give a Content-Length, or only Transfer-Encoding: chunked")
        if not chunked and not re.fullmatch("[0-9]{1,12}", length or ""):
            raise Refused(411, "give the Content-Length of the request")
        text = b"".join(self.chunks()) if chunked else self.part(int(length))
        try:
            return json.loads(text.decode())
        except (ValueError, RecursionError):
            raise Refused(400, "the request is not JSON") from None

    def part(self, length, most=BODY):
        """So many bytes of the request."""
        if length > most:
            self.rfile.read(min(length, 2**24))  # so that the client reads why
            raise Refused(413, f"a request has at most {BODY} bytes")
        text = self.rfile.read(length)
        if len(text) < length:
            raise Refused(400, "the request ended early")
        return text

    def chunks(self):
        """The parts of a body whose length was not known when its headers were sent."""
        left = BODY
        while True:
            size, _, _ = self.rfile.readline(100).partition(b";")
            if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size.strip()):
                raise Refused(400, "a chunk of the request has no length")
            text = self.part(int(size, 16), left)
            left -= len(text)
            if not text:
                while self.rfile.readline(1000).strip():
                    pass  # headers that follow the last one
                return
            self.rfile.readline(3)  # the line's end
            yield text

    def reply(self, status, content):
        """Sends JSON, the page, or a stream of server-sent events."""
        kind = ("text/html; charset=utf-8" if isinstance(content, bytes) else
                "application/json" if isinstance(content, (dict, list)) else "text/event-stream")
        if kind == "application/json":
            content = json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if isinstance(content, bytes):
                self.send_header("Content-Length", str(len(content)))
            self.send_more_headers()
            self.end_headers()
            if self.command != "HEAD":
                for part in [content] if isinstance(content, bytes) else self.events(content):
                    self.wfile.write(part)
        except (ConnectionError, TimeoutError):
            pass  # the client has gone

    def events(self, content):
        """The parts of a stream; what fails after its beginning becomes its last event."""
        try:
            yield from content
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            _, content = self.failure(error)
            yield f"data: {json.dumps(content)}\n\n".encode()

    def send_more_headers(self):
        """Headers that keep a browser from doing anything else with what it gets."""
        for name, value in (("Content-Security-Policy", self.server.policy),
                            ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"),
                            ("Referrer-Policy", "no-referrer"), ("Connection", "close")):
            self.send_header(name, value)
        origin = getattr(self, "headers", None) and self.headers.get("Origin")
        if origin in self.server.origins:
            self.send_header("Access-Control-Allow-Origin", origin)
            wanted = self.headers.get("Access-Control-Request-Headers", "")  # of OpenAI's packages
            self.send_header("Access-Control-Allow-Headers", ", ".join(
                ["Content-Type", "Authorization", *re.findall("(?i)x-stainless-[a-z-]+", wanted)]))
            self.send_header("Access-Control-Allow-Methods", "GET, POST")
