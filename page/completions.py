"""The endpoints that editor plugins know: OpenAI's completions, and the study's own editor.

POST /v1/completions and GET /v1/models are OpenAI's: the models are the assistants of the page.
POST /infill is that of llama.cpp's server.
POST / is that of the editor that was published with the paper: a list of one string, the code
before the caret, is answered by a list of one string, that code with the suggestion after it.
"""

import itertools
import json
import math
import time

from page.api import checked_text
from page.assistants import Request
from page.refused import Refused, field

STOPS = 64  # strings at most; OpenAI takes four, but plugins send more
UNLIMITED = 10**6  # tokens


class Completions:
    """The routes for editors."""

    def __init__(self, models):
        self.models, self.begin = models, int(time.time())
        self.numbers = itertools.count()
        trained = [name for name, choice in models.choices.items()
                   if choice.checkpoint is not models.scorer]
        self.only = trained[0] if len(trained) == 1 else None  # it answers for unknown names

    def routes(self):
        return {("POST", "/v1/completions"): self.completions, ("GET", "/v1/models"): self.list,
                ("GET", "/v1/models/"): self.model, ("POST", "/v1/chat/completions"): self.chat,
                ("POST", "/infill"): self.infill, ("POST", "/"): self.continued}

    def list(self, body, call):
        """The assistants, the first of which is the default."""
        return {"object": "list", "data": list(map(self.described, self.models.choices))}

    def model(self, body, call):
        """One assistant of the list."""
        name = body["path"]
        if name not in self.models.choices:
            raise self.unknown(name)
        return self.described(name)

    def described(self, name):
        """An assistant, in OpenAI's format."""
        return {"id": name, "object": "model", "created": self.begin, "owned_by": "empower"}

    def unknown(self, name):
        """Why a model cannot answer."""
        return Refused(404, f"there is no model {name[:100]!r}: choose from "
                            f"{', '.join(self.models.choices)}")

    def chat(self, body, call):
        """Assistants continue a text; a template of a chat would be none of theirs."""
        raise Refused(404, "these assistants continue code and do not chat: send the code before "
                           "the caret to /v1/completions, as prompt")

    def continued(self, body, call):
        """The published editor's exchange, with the first assistant."""
        if not isinstance(body, list) or len(body) != 1 or not isinstance(body[0], str):
            raise Refused(400, "give a list of one string, the code before the caret")
        name = next(iter(self.models.choices))
        found = self.models.suggest(name, None, Request(checked_text(body[0])), call)
        return [body[0] + (found.text if found else "")]

    def infill(self, body, call):
        """What llama.vim asks a server of llama.cpp for, with the first assistant."""
        text = field(body, "input_prefix", str, "") + field(body, "prompt", str, "")
        name, most = next(iter(self.models.choices)), tokens(body, "n_predict")
        found = self.models.suggest(name, None, Request(checked_text(text), max_tokens=most), call)
        return {"content": found.text if found else ""}

    def completions(self, body, call):
        """An answer in OpenAI's format, whole or as a stream of server-sent events."""
        if not isinstance(body, dict):
            raise Refused(400, "the request is not an object")
        asked = field(body, "model", str, next(iter(self.models.choices)))
        name = asked if asked in self.models.choices else self.only
        if name is None:
            raise self.unknown(asked)
        if field(body, "n", int, 1) != 1 or field(body, "echo", bool, False):
            raise Refused(400, "n other than 1 and echo are not supported")
        number, temperature = next(self.numbers), field(body, "temperature", float, 0.0, 0, 2)
        stops = stop_strings(body)
        field(body, "logprobs", int, 0, 0, 5)
        needs_eta = self.models.choices[name].needs_eta  # `eta` is not OpenAI's
        job = self.models.ask(name, Request(
            prompt(body), field(body, "eta", float, 0.32, 0, 1000) if needs_eta else math.inf,
            tokens(body, "max_tokens"),
            temperature if temperature > 0.01 else 0.0,  # the logits are divided by it
            max(field(body, "top_p", float, 1.0, 0, 1), 0.001),
            field(body, "seed", int, number, -2**62, 2**62)), call)
        parts = up_to_stop(self.models.line.answer(job), job, stops)
        answer = Answer({"id": f"cmpl-{number}", "object": "text_completion",
                         "created": int(time.time()), "model": name}, job,
                        body.get("logprobs") is not None)
        warnings = [f"there is no model {asked[:100]!r}: {name} answers"] * (asked != name) + [
            "suffix is ignored: assistants read only what is before the caret"] * bool(
                body.get("suffix"))
        if warnings:
            answer.fields["warning"] = "; ".join(warnings)
        if not field(body, "stream", bool, False):
            return answer.whole(parts)
        options = field(body, "stream_options", dict, {})
        events = answer.events(parts, field(options, "include_usage", bool, False))
        return itertools.chain([next(events)], events)  # what fails at once is no stream


class Answer:
    """What one request is answered. fields: those that are in every part of a stream, too."""

    def __init__(self, fields, job, logprobs):
        self.fields, self.job, self.logprobs = fields, job, logprobs
        self.tokens, self.length = 0, 0  # given so far; length: in characters

    def choice(self, parts, reason=None):
        """The (text, bits) of some tokens; log probabilities are natural, as in OpenAI's format."""
        texts = [text for text, _ in parts]
        *offsets, self.length = itertools.accumulate(map(len, texts), initial=self.length)
        self.tokens += len(parts)
        return {"index": 0, "text": "".join(texts), "finish_reason": reason,
                "logprobs": {"tokens": texts, "text_offset": offsets, "top_logprobs": None,
                             "token_logprobs": [-bits * math.log(2) for _, bits in parts]}
                if self.logprobs else None}

    def usage(self):
        """Tokens read, of the prompt's end, and written."""
        read = self.job.item.read
        return {"prompt_tokens": read, "completion_tokens": self.tokens,
                "total_tokens": read + self.tokens}

    def whole(self, parts):
        """The answer in one piece."""
        choice = self.choice([part for part in parts if part])
        choice["finish_reason"] = self.job.outcome
        return {**self.fields, "choices": [choice], "usage": self.usage()}

    def events(self, parts, usage):
        """The same as server-sent events, one for each token as it comes.

        A comment, which clients skip, keeps the connection open while there is none.
        """
        def event(choices, **more):
            return f"data: {json.dumps({**self.fields, 'choices': choices, **more})}\n\n".encode()

        more = {"usage": None} if usage else {}
        for part in parts:
            yield event([self.choice([part])], **more) if part else b": at work\n\n"
        yield event([self.choice([], self.job.outcome)], **more)
        if usage:
            yield event([], usage=self.usage())
        yield b"data: [DONE]\n\n"


def tokens(body, name):
    """How many tokens are wanted at most; -1 is what llama.cpp and others call no limit."""
    most = field(body, name, int, UNLIMITED, -1, 10**9)
    return UNLIMITED if most < 0 else most


def prompt(body):
    """The text before the caret: a string, or a list of one."""
    text = body.get("prompt")
    if isinstance(text, list) and len(text) == 1:
        text = text[0]
    if not isinstance(text, str):
        raise Refused(400, "prompt is not a string, or a list of one")
    return checked_text(text)


def stop_strings(body):
    """The strings at which an answer ends: none, one, or several."""
    stops = body.get("stop")
    stops = [stops] if isinstance(stops, str) else stops or []
    if not isinstance(stops, list) or len(stops) > STOPS or not all(
            isinstance(stop, str) and stop for stop in stops):
        raise Refused(400, f"stop is not a string, or a list of up to {STOPS}")
    return stops


def up_to_stop(parts, job, stops):
    """Yields (text, bits) of each token up to a stop string, where the job ends.

    Tokens that may be the beginning of one are held back. None, while there are none, is passed on.
    Example: "a = ", "1\\n", "b" with "\\n" becomes "a = ", "1".
    """
    held, text = [], ""
    for part in parts:
        if part is None:
            yield None
            continue
        held.append(part)
        text += part[0]
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        safe = min(ends, default=len(text) - begun(text, stops))
        while held and len(held[0][0]) <= safe:
            yield held[0]
            size = len(held.pop(0)[0])
            text, safe = text[size:], safe - size
        if ends:
            if safe:
                yield held[0][0][:safe], held[0][1]
            job.end()
            job.outcome = "stop"
            return
    yield from held


def begun(text, stops):
    """How many of the last characters may be the beginning of a stop string."""
    return max((n for stop in stops for n in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:n])), default=0)
