"""A client of model servers that speak the OpenAI protocol: vLLM, llama.cpp, Ollama, and others.

Only the standard library: a connection for each thread, kept alive; a deadline for the body of each
answer, so that one that drips in slowly counts as failed too; retries with growing pauses, or as
long as the server asks for in Retry-After. The key comes from the environment variable
OPENAI_API_KEY and is never printed or written.
"""

import base64
import collections
import contextlib
import http.client
import json
import math
import os
import random
import re
import socket
import ssl
import sys
import threading
import time
import urllib.parse

from support.cli import UserError

KEY = "OPENAI_API_KEY"
LARGEST = 2**24     # bytes of an answer
RETRIES = 8         # of a call, over about 4 minutes
PAUSE = 1.0         # seconds before the first retry; each pause is twice the last
FEWEST = 16         # tokens of an answer: a prompt that leaves no room for them is too long
# How vLLM, llama.cpp, TGI, Groq and others say it.
TOO_LONG = re.compile(r"context.?(length|size|window)|too (long|large|many tokens)|maximum.*length|"
                      r"reduce the length|inputs\W.*less than|max_\w*tokens\W.*(less|at most|<=)",
                      re.IGNORECASE)
OF_THE_ANSWER = re.compile(r"completion|max_\w*tokens", re.IGNORECASE)  # so it is not the prompt


class Failed(Exception):
    """An attempt failed; another may succeed. pause: seconds that the server asks for, or None."""

    def __init__(self, reason, pause=None):
        super().__init__(reason)
        self.pause = pause


class Refused(UserError):
    """The server does not take a request; reason: in its own words."""

    def __init__(self, sentence, reason):
        super().__init__(sentence)
        self.reason = reason


class TooLong(UserError):
    """A prompt does not fit into the model's context."""


class Answer(str):
    """The text of an answer. cut: it ended at the limit of tokens; empty: why it has no text."""

    def __new__(cls, text, cut=False, empty=""):
        answer = super().__new__(cls, text)
        answer.cut, answer.empty = cut, empty
        return answer


class Server:
    """A server, one of its models, and how much was asked of it.

    url: as in http://127.0.0.1:8000 or https://api.example.com/v1#MODEL, also of one of its
    endpoints. model: None for that in the address, or else the first that the server lists.
    timeout: seconds for one answer. reasoning: more tokens for each answer of a chat, for a model
    that reasons first. calls, retries, tokens: counted over all threads, tokens as the server
    counts those it wrote. answers, empty: of chats, and those without text by their reason.
    """

    def __init__(self, url, model=None, timeout=120.0, reasoning=0):
        try:
            parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of the port or of [::1
            usable = False
        user, _, host = parts.netloc.rpartition("@") if usable else ("", "", url.split("@")[-1])
        if not usable:
            raise UserError(f"{host} is not a server: give an address as in http://127.0.0.1:8000")
        path = re.sub(r"(/chat)?/(completions|models)$", "", parts.path.rstrip("/")).rstrip("/")
        self.path = path if re.search(r"/v\d", path) else f"{path}/v1"
        self.url = f"{parts.scheme}://{host}{self.path}"  # for a person: it has no password
        self.parts, self.timeout, self.reasoning = parts, timeout, reasoning
        self.headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if user:
            login = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
            self.headers["Authorization"] = f"Basic {login}"
        self.calls = self.retries = self.tokens = self.answers = 0
        self.empty, self._renamed, self._told = collections.Counter(), {}, set()
        self._lock, self._local = threading.Lock(), threading.local()
        self._ended, self._open = threading.Event(), set()
        self.model = model or parts.fragment or self.first_model()

    def first_model(self):
        """The name of the first model that the server lists."""
        try:
            return str(self.ask("GET", "/models", retries=2)["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            reason = type(error).__name__
        except UserError as error:
            if KEY in str(error) or "certificate" in str(error):
                raise
            reason = error
        raise UserError(f"{self.url}/models lists no models ({reason}): if it is running, name one "
                        "with --human-model or as NAME=URL#MODEL")

    def chat(self, messages, max_tokens, temperature=1.0, seed=None, stop=None):
        """The Answer of the model to messages, [{"role", "content"}].

        A UserError if more than half of at least 20 answers have no text.
        """
        choice = self.choice_of(self.ask("POST", "/chat/completions", {
            "model": self.model, "messages": messages, "max_tokens": max_tokens + self.reasoning,
            "temperature": temperature, **given(seed=seed, stop=stop)}), "message")
        text, why = text_of(choice["message"]), choice.get("finish_reason")
        empty = "" if text.strip() else (
            "cut before the answer began" if why == "length" else
            "refused" if choice["message"].get("refusal") or why == "content_filter" else "empty")
        with self._lock:
            self.answers += 1
            self.empty[empty] += bool(empty)
        self.check_answers(20)
        return Answer(text, why == "length", empty)

    def check_answers(self, least=1):
        """A UserError if more than half of at least `least` answers have no text."""
        with self._lock:
            if self.answers < least or 2 * self.empty.total() <= self.answers:
                return
            reasons = ", ".join(f"{n} {why}" for why, n in self.empty.most_common() if n)
        raise UserError(
            f"{self.model} at {self.url} gave {self.answers} answers, of which {reasons}: a model "
            "that reasons first needs --reasoning-tokens 8192 or more, another one a larger "
            "--max-tokens where there is that flag, or it is the wrong model")

    def complete(self, prompt, max_tokens, temperature=1.0, seed=None, stop=None):
        """The Answer with which the model continues a prompt."""
        choice = self.choice_of(self._complete(prompt, max_tokens, temperature, seed, stop), "text")
        return Answer(choice["text"] or "", choice.get("finish_reason") == "length")

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

    def choice_of(self, answer, part):
        """The first choice of an answer, which has this part."""
        with contextlib.suppress(KeyError, IndexError, TypeError):
            if part in answer["choices"][0]:
                return answer["choices"][0]
        raise UserError(f"{self.url} answered without text: is it a server of language models?")

    # ---- one call

    def ask(self, method, path, body=None, retries=None):
        """The JSON object that the server answers, after retries; a UserError if it does not."""
        retries = RETRIES if retries is None else retries
        for attempt in range(retries + 1):
            if self._ended.is_set():
                raise UserError(f"the calls of {self.url} were ended")
            try:
                answer = self.adapted(method, path, body)
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
        raise UserError(f"{self.url}{path} does not answer ({reason}), after {retries} retries: is "
                        "the server running? The same command goes on")

    def adapted(self, method, path, body):
        """`attempt` with the request as this server wants it, which it says when it refuses one.

        Some call max_tokens by another name, or take no seed. Where it is the answer asked for that
        does not fit into the context, a shorter one is asked for; TooLong if it is the prompt.
        """
        while True:
            renamed = dict(self._renamed)
            try:
                return self.attempt(method, path, body and {
                    renamed.get(name, name): value for name, value in body.items()
                    if renamed.get(name, name)})
            except Refused as refused:
                asked, reason = (body or {}).get("max_tokens", 0), refused.reason
                if TOO_LONG.search(reason):
                    if asked <= FEWEST or not OF_THE_ANSWER.search(reason):
                        raise TooLong(str(refused)) from None
                    body = {**body, "max_tokens": max(asked // 2, FEWEST)}
                    self.tell("has no room for so long an answer: asking for fewer tokens")
                elif "max_completion_tokens" in reason and "max_tokens" not in renamed and asked:
                    self._renamed["max_tokens"] = "max_completion_tokens"
                elif re.search(r"\bseed\b", reason) and "seed" not in renamed and body:
                    self._renamed["seed"] = None
                    self.tell("takes no seed: none is sent")
                else:
                    raise

    def tell(self, sentence):
        """Says something about this server, once."""
        with self._lock:
            if sentence not in self._told:
                print(f"{self.url} {sentence}", file=sys.stderr)
            self._told.add(sentence)

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
        key, headers = os.environ.get(KEY, "").strip(), dict(self.headers)
        if not key.isascii() or not key.isprintable():
            raise UserError(f"{KEY} holds characters that no key has: set it again")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        query = f"?{self.parts.query}" if self.parts.query else ""
        kept = getattr(self._local, "connection", None) is not None
        try:
            connection = self.connection()
            connection.request(method, self.path + path + query, content, headers)
            response = connection.getresponse()
            text = self.read(response)
            if response.will_close:
                self.close()
        except ssl.SSLCertVerificationError as error:
            raise UserError(f"{self.url} has a certificate that cannot be verified "
                            f"({error.verify_message}): if it is yours, set SSL_CERT_FILE to its "
                            "file") from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if kept and isinstance(error, ConnectionError):  # the server ends idle connections
                return self.attempt(method, path, body)
            raise Failed(f"{type(error).__name__}: {error}") from None
        return self.checked(path, response, text)

    def checked(self, path, response, text):
        """The object in an answer; Failed if another try may succeed, else a UserError."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        status, error = response.status, isinstance(found, dict) and found.get("error")
        if status == 200 and error:  # some send their errors like this
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
        if status in (408, 409, 425, 429) or status >= 500 and status not in (501, 505):
            raise Failed(f"status {response.status}: {said(text)}",
                         seconds(response.headers.get("Retry-After")))
        if status != 200:
            key = f": set {KEY} to a key that it takes" * (status in (401, 403))
            sentence = f"{self.url}{path} answered {status}: {said(text)}{key}"
            raise (Refused(sentence, said(text)) if status in (400, 413, 422)
                   else UserError(sentence))
        if found is None:
            raise Failed(f"half an answer, or no JSON: {said(text)[:60]!r}")
        if isinstance(found, dict) and found.get("choices") == []:
            raise Failed("an answer without choices")
        return found

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


def text_of(message):
    """The text of a chat's answer, which some servers give in parts; "" if it has none."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict)
                          and part.get("type") in ("text", "output_text"))
    return content if isinstance(content, str) else ""


def given(**options):
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def completion_tokens(answer):
    """How many tokens the server says it wrote, 0 if it does not say."""
    try:
        return max(0, int(answer["usage"]["completion_tokens"]))
    except (KeyError, TypeError, ValueError, OverflowError):
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
