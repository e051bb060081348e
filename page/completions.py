"""The endpoints that editor plugins know: OpenAI's completions, and the study's own editor.

POST /v1/completions and GET /v1/models are OpenAI's: the models are the assistants of the page.
POST / is that of the editor that was published with the paper: a list of one string, the code
before the caret, is answered by a list of one string, that code with the suggestion after it.
"""

import itertools
import json
import math
import time

from page.assistants import Request
from page.api import checked_text
from page.refused import Refused, field


STOPS = 64  # strings at most; OpenAI takes four, but plugins send more


class Completions:
    """The routes for editors."""

    def __init__(self, models):
        self.models, self.begin = models, int(time.time())
        self.numbers = itertools.count()

    def routes(self):
        return {("POST", "/v1/completions"): self.completions, ("GET", "/v1/models"): self.list,
                ("POST", "/"): self.continued}

    def list(self, body, arrived):
        """The assistants, the first of which is the default."""
        return {"object": "list", "data": [
            {"id": name, "object": "model", "created": self.begin, "owned_by": "empower"}
            for name in self.models.choices]}

    def continued(self, body, arrived):
        """The published editor's exchange, with the first assistant."""
        if not isinstance(body, list) or len(body) != 1 or not isinstance(body[0], str):
            raise Refused(400, "give a list of one string, the code before the caret")
        name, text = next(iter(self.models.choices)), checked_text(body[0])
        found = self.models.suggest(name, (next(self.numbers),), Request(text))
        return [text + (found.text if found else "")]

    def completions(self, body, arrived):
        """An answer in OpenAI's format, whole or as a stream of server-sent events."""
        if not isinstance(body, dict):
            raise Refused(400, "the request is not an object")
        name = field(body, "model", str, next(iter(self.models.choices)))
        if name not in self.models.choices:
            raise Refused(404, f"there is no model {name[:100]!r}: GET /v1/models lists them")
        if field(body, "n", int, 1) != 1 or field(body, "echo", bool, False):
            raise Refused(400, "n other than 1 and echo are not supported")
        number, temperature = next(self.numbers), field(body, "temperature", float, 0.0, 0, 2)
        stops = stop_strings(body)
        field(body, "logprobs", int, 0, 0, 5)
        needs_eta = self.models.choices[name].needs_eta  # `eta` is not OpenAI's
        request = Request(prompt(body),
                          field(body, "eta", float, 0.32, 0, 1000) if needs_eta else math.inf,
                          field(body, "max_tokens", int, 10**6, 1, 10**6),
                          temperature if temperature > 0.01 else 0.0,  # the logits are divided
                          max(field(body, "top_p", float, 1.0, 0, 1), 0.001),
                          field(body, "seed", int, number, -2**62, 2**62),
                          costs=body.get("logprobs") is not None)
        found = self.models.suggest(name, (number,), request)  # no editor has such a key
        pieces, costs, ended = cut(found, stops)
        answer = {"id": f"cmpl-{number}", "object": "text_completion", "created": int(time.time()),
                  "model": name}
        if body.get("suffix"):
            answer["warning"] = "suffix is ignored: assistants read only what is before the caret"
        reason = "stop" if ended else "length"
        if field(body, "stream", bool, False):
            return events(answer, pieces, costs, reason)
        read = len(self.models.choices[name].checkpoint.encoding.encode_ordinary(request.text))
        return {**answer, "choices": [choice(pieces, costs, reason)],
                "usage": {"prompt_tokens": read, "completion_tokens": len(pieces),
                          "total_tokens": read + len(pieces)}}


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


def cut(found, stops):
    """(pieces, costs or None, whether it ended by itself): a Suggestion up to a stop string.

    Example: pieces ["a = ", "1\\n", "b"], stops ["\\n"]: ["a = ", "1"].
    """
    end = min((at for stop in stops if (at := found.text.find(stop)) >= 0), default=None)
    if end is None:
        return found.pieces, found.costs, found.stopped
    pieces = []
    for piece in found.pieces:
        if end <= 0:
            break
        pieces.append(piece[:end])
        end -= len(piece)
    return pieces, found.costs and found.costs[:len(pieces)], True


def choice(pieces, costs, reason, offset=0):
    """One answer, or a part of it; log probabilities are natural, as in OpenAI's format."""
    offsets = itertools.accumulate(map(len, pieces[:-1]), initial=offset)
    return {"index": 0, "text": "".join(pieces), "finish_reason": reason,
            "logprobs": costs if costs is None else {
                "tokens": pieces, "token_logprobs": [-bits * math.log(2) for bits in costs],
                "top_logprobs": None, "text_offset": list(offsets)[:len(pieces)]}}


def events(answer, pieces, costs, reason):
    """The same as server-sent events, one for each token."""
    offset = 0
    for k, piece in enumerate(pieces):
        part = choice([piece], costs and costs[k:k + 1], None, offset)
        offset += len(piece)
        yield f"data: {json.dumps({**answer, 'choices': [part]})}\n\n".encode()
    last = {**answer, "choices": [choice([], costs and [], reason, offset)]}
    yield f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode()
