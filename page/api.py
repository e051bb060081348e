"""What the page itself asks for: the costs of a program, suggestions, and episodes to watch."""

import math

from page.assistants import LONGEST, Request
from page.refused import Refused, field


class Api:
    """The routes of the three views Read, Write and Watch."""

    def __init__(self, offer):
        self.offer, self.models = offer, offer.models

    def routes(self):
        return {("GET", "/api/about"): self.about, ("POST", "/api/read"): self.read,
                ("POST", "/api/suggest"): self.suggest, ("POST", "/api/watch"): self.watch}

    def about(self, body, call):
        """What there is to choose from."""
        games = self.offer.games
        return {"assistants": [{"name": name, "needs_eta": choice.needs_eta}
                               for name, choice in self.models.choices.items()],
                "texts": [{"name": name, "text": text, "statement": statement}
                          for name, text, statement in self.offer.texts],
                "reader": self.offer.reader, "own": self.offer.own,
                "rows": list(games["rows"]), "problems": games["problems"]}

    def read(self, body, call):
        """The costs of a program: {"tokens": [...], "of": how many tokens it has}.

        A token is {"text", "bits", "likeliest": [[text, probability]]}.
        """
        tokens, of = self.models.read(field(body, "client", str), text_of(body), call) or ([], 0)
        return {"of": of, "tokens": [{"text": text, "bits": bits, "likeliest": likeliest}
                                     for text, bits, likeliest in tokens]}

    def suggest(self, body, call):
        """What an assistant suggests after a text, and the cost under its own model."""
        name = field(body, "assistant", str)
        if name not in self.models.choices:
            raise Refused(404, f"there is no assistant {name[:100]!r}")
        eta = (field(body, "eta", float, 0.32, 0, 1000) if self.models.choices[name].needs_eta
               else math.inf)
        found = self.models.suggest(name, field(body, "client", str), Request(
            checked_text(field(body, "text", str)), eta), call)
        if found is None:
            return {"overtaken": True, "suggestion": ""}
        return {"suggestion": found.text, "tokens": found.tokens, "bits": found.bits}

    def watch(self, body, call):
        """One episode of a row of the table."""
        rows, problem = self.offer.games["rows"], field(body, "problem", int, least=0, most=10**6)
        row = field(body, "row", str)
        if row not in rows or problem >= len(rows[row]):
            raise Refused(404, f"there is no episode of {row[:100]!r} with problem {problem}")
        return rows[row][problem]


def text_of(body):
    """The text of a request, with \\n line ends; Refused if it is longer than a program may be."""
    text = field(body, "text", str)
    if len(text) > LONGEST:
        raise Refused(413, f"the program has {len(text)} characters: at most {LONGEST} are read")
    return checked_text(text)


def checked_text(text):
    """A text with \\n line ends; Refused if it is no valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise Refused(400, "text is not valid Unicode") from None
    return text.replace("\r\n", "\n")
