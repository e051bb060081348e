"""A client of model servers that speak the OpenAI protocol: vLLM, llama.cpp, Ollama, and others.

Only the standard library: a connection for each thread, kept alive; a deadline for the body of each
answer, so that one that drips in slowly counts as failed too; retries with growing pauses, or as
long as the server asks for in Retry-After. The key comes from the environment variable
OPENAI_API_KEY and is never printed or written.
"""

import contextlib
import http.client
import json
import math
import os
import random
import re
import socket
import threading
import time
import urllib.parse

from support.cli import UserError

KEY = "OPENAI_API_KEY"
LARGEST = 2**24     # bytes of an answer
RETRIES = 8         # of a call, over about 4 minutes
PAUSE = 1.0         # seconds before the first retry; each pause is twice the last
TOO_LONG = re.compile(r"context (length|size|window)|too (long|large|many tokens)|maximum.*length",
                      re.IGNORECASE)  # how vLLM, llama.cpp and others say it
TO_RETRY = (408, 409, 425, 429, 500, 502, 503, 504)


class Failed(Exception):
    """An attempt failed; another may succeed. pause: seconds that the server asks for, or None."""

    def __init__(self, reason, pause=None):
        super().__init__(reason)
        self.pause = pause


class TooLong(UserError):
    """A prompt does not fit into the model's context."""


class Server:
    """A server, one of its models, and how much was asked of it.

    url: as in http://127.0.0.1:8000 or https://api.example.com/v1. model: None for the first that
    the server lists. timeout: seconds for one answer. calls, retries, tokens: counted over all
    threads, tokens as the server counts those it wrote.
    """

    def __init__(self, url, model=None, timeout=120.0):
        try:
            parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of the port or of [::1
            usable = False
        if not usable:
            raise UserError(f"{url} is not a server: give an address as in http://127.0.0.1:8000")
        self.url, self.parts, self.timeout = url, parts, timeout
        path = parts.path.rstrip("/")
        self.path = path if path.endswith("/v1") else f"{path}/v1"
        self.calls = self.retries = self.tokens = 0
        self._lock, self._local = threading.Lock(), threading.local()
        self._ended, self._open = threading.Event(), set()
        self.model = model or self.first_model()

    def first_model(self):
        """The name of the first model that the server lists."""
        try:
            return str(self.ask("GET", "/models", retries=2)["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            reason = type(error).__name__
        except UserError as error:
            if KEY in str(error):
                raise
            reason = error
        raise UserError(f"{self.url} lists no models ({reason}): if it is running, name one with "
                        "--human-model or as NAME=URL#MODEL")

    def chat(self, messages, max_tokens, temperature=1.0, seed=None, stop=None):
        """The text that the model answers to messages, [{"role", "content"}]; "" if none."""
        answer = self.ask("POST", "/chat/completions", {
            "model": self.model, "messages": messages, "max_tokens": max_tokens,
            "temperature": temperature, **given(seed=seed, stop=stop)})
        return self.text_of(answer, lambda choice: choice["message"]["content"])

    def complete(self, prompt, max_tokens, temperature=1.0, seed=None, stop=None):
        """The text with which the model continues a prompt."""
        return self.text_of(self._complete(prompt, max_tokens, temperature, seed, stop),
                            lambda choice: choice["text"])

    def complete_with_costs(self, prompt, max_tokens, temperature=1.0, seed=None, stop=None):
        """[(text of a token, its cost in bits)]; a UserError if the server gives no logprobs."""
        answer = self._complete(prompt, max_tokens, temperature, seed, stop, logprobs=1)
        try:
            choice = answer["choices"][0]
            found = choice["logprobs"]
            if "content" in found:  # as llama.cpp gives them; others have a list of each
                tokens = [(token["token"], token["logprob"]) for token in found["content"]]
            else:
                tokens = zip(found["tokens"], found["token_logprobs"], strict=True)
            return costs_of(choice["text"], tokens)
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{self.url} gives no logprobs, which a threshold needs: use a server "
                            "that does, such as vLLM or llama.cpp, or a local checkpoint") from None

    def _complete(self, prompt, max_tokens, temperature, seed, stop, **options):
        return self.ask("POST", "/completions", {
            "model": self.model, "prompt": prompt, "max_tokens": max_tokens,
            "temperature": temperature, **given(seed=seed, stop=stop), **options})

    def text_of(self, answer, read):
        """The text in an answer, read by a function of its first choice."""
        try:
            text = read(answer["choices"][0])
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{self.url} answered without text: is it a server of language models?"
                            ) from None
        return text if isinstance(text, str) else ""

    # ---- one call

    def ask(self, method, path, body=None, retries=None):
        """The JSON object that the server answers, after retries; a UserError if it does not."""
        retries = RETRIES if retries is None else retries
        for attempt in range(retries + 1):
            if self._ended.is_set():
                raise UserError(f"the calls of {self.url} were ended")
            try:
                answer = self.attempt(method, path, body)
                with self._lock:
                    self.calls += 1
                    self.tokens += completion_tokens(answer)
                return answer
            except Failed as failed:
                reason, pause = failed, failed.pause
            if attempt < retries:
                with self._lock:
                    self.retries += 1
                # Threads that failed together do not come back together.
                self._ended.wait(PAUSE * 2**min(attempt, 6) * random.uniform(0.75, 1.25)
                                 if pause is None else min(pause, 300))
        raise UserError(f"{self.url} does not answer ({reason}), after {retries} retries: is the "
                        "server running? The same command goes on")

    def end(self):
        """Ends all calls, those of other threads too, for instance after Ctrl-C."""
        self._ended.set()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError, AttributeError):  # not connected yet
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def attempt(self, method, path, body):
        """One request; raises Failed if it is worth another try."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(KEY, "").strip()
        if not key.isascii() or not key.isprintable():
            raise UserError(f"{KEY} holds characters that no key has: set it again")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        kept = getattr(self._local, "connection", None) is not None
        try:
            connection = self.connection()
            connection.request(method, self.path + path, content, headers)
            response = connection.getresponse()
            text = self.read(response)
            if response.will_close:
                self.close()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if kept and isinstance(error, ConnectionError):  # the server ends idle connections
                return self.attempt(method, path, body)
            raise Failed(f"{type(error).__name__}: {error}") from None
        if response.status in TO_RETRY:
            raise Failed(f"status {response.status}: {said(text)}",
                         seconds(response.headers.get("Retry-After")))
        if response.status != 200:
            kind = TooLong if response.status in (400, 413, 422) and TOO_LONG.search(
                said(text)) else UserError
            key = f": set {KEY} to a key that it takes" * (response.status in (401, 403))
            raise kind(f"{self.url}{path} answered {response.status}: {said(text)}{key}")
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise Failed(f"half an answer, or no JSON: {said(text)[:60]!r}") from None

    def read(self, response):
        """The body of a response; Failed if it takes too long or is too large."""
        parts, deadline, size, length = [], time.monotonic() + self.timeout, 0, response.length
        while length is None or size < length:
            part = response.read1(2**16 if length is None else min(2**16, length - size))
            if not part:
                break
            parts.append(part)
            size += len(part)
            if time.monotonic() > deadline or size > LARGEST:
                self.close()
                raise Failed(f"an answer of more than {self.timeout:g} s or {LARGEST} bytes")
        if length is not None and size < length:
            self.close()
            raise Failed("the answer was cut off")
        response.close()  # the connection stays open
        return b"".join(parts)

    def connection(self):
        """This thread's connection."""
        if getattr(self._local, "connection", None) is None:
            kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
            self._local.connection = kind[self.parts.scheme](
                self.parts.hostname, self.parts.port, timeout=self.timeout)
            with self._lock:
                self._open.add(self._local.connection)
        return self._local.connection

    def close(self):
        """Ends this thread's connection; the next call opens another."""
        if getattr(self._local, "connection", None) is not None:
            self._local.connection.close()
            with self._lock:
                self._open.discard(self._local.connection)
            self._local.connection = None


def costs_of(text, tokens):
    """[(text of a token, its cost in bits)]; tokens: [(its text, its log p)].

    An end of the text, which some servers list too, is left out. From a character on that has
    several tokens, the rest of the text is one of them, with all the cost that is left.
    """
    found, length = [], 0
    tokens = [(token, -float(log_p) / math.log(2)) for token, log_p in tokens]
    for k, (token, cost) in enumerate(tokens):
        if length == len(text):
            break
        if not text.startswith(token, length):
            found.append((text[length:], sum(cost for _, cost in tokens[k:])))
            break
        found.append((token, cost))
        length += len(token)
    return found


def given(**options):
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def completion_tokens(answer):
    """How many tokens the server says it wrote, 0 if it does not say."""
    try:
        return int(answer["usage"]["completion_tokens"])
    except (KeyError, TypeError, ValueError):
        return 0


def seconds(text):
    """The seconds in a Retry-After header; None if it has none, or a date."""
    try:
        return max(0.0, float(text))
    except (TypeError, ValueError):
        return None


def said(text):
    """The message in a server's error, in one short line."""
    try:
        found = json.loads(text)
        found = found.get("error", found)
        message = found["message"] if isinstance(found, dict) else found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        message = text.decode("utf-8", "replace")
    # Some servers repeat the key.
    message = str(message).replace(os.environ.get(KEY, "").strip() or KEY, "...")
    return " ".join(message.split())[:200] or "no message"
