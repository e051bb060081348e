"""What the page itself asks for: the costs of a program, suggestions, and episodes to watch."""

import time

from page.assistants import Request
from page.refused import Refused, field

LONGEST = 100_000  # characters of a program


class Api:
    """The routes of the three views Read, Write and Watch."""

    def __init__(self, offer):
        self.offer, self.models = offer, offer.models

    def routes(self):
        return {("GET", "/api/about"): self.about, ("POST", "/api/read"): self.read,
                ("POST", "/api/suggest"): self.suggest, ("POST", "/api/watch"): self.watch}

    def about(self, body, begin):
        """What there is to choose from."""
        games = self.offer.games
        return {"assistants": [{"name": name, "needs_eta": choice.needs_eta}
                               for name, choice in self.models.choices.items()],
                "texts": [{"name": name, "text": text} for name, text in self.offer.texts],
                "rows": list(games["rows"]), "problems": games["problems"]}

    def read(self, body, begin):
        """The costs of a program: {"tokens": [...], "of": how many tokens it has}.

        A token is {"text", "bits", "likeliest": [[text, probability]]}.
        """
        tokens, of = self.models.read(field(body, "client", str), program(body)) or ([], 0)
        return {"of": of, "tokens": [{"text": text, "bits": bits, "likeliest": likeliest}
                                     for text, bits, likeliest in tokens]}

    def suggest(self, body, begin):
        """What an assistant suggests after a text, how long it took, and what it costs it."""
        name = field(body, "assistant", str)
        if name not in self.models.choices:
            raise Refused(404, f"there is no assistant {name[:100]!r}")
        request = Request(program(body), costs=True)
        if self.models.choices[name].needs_eta:
            request = Request(program(body), field(body, "eta", float, 0.32, 0, 1000), costs=True)
        found = self.models.suggest(name, field(body, "client", str), request)
        if found is None:
            return {"overtaken": True, "suggestion": ""}
        return {"suggestion": found.text, "tokens": len(found.pieces), "bits": sum(found.costs),
                "seconds": time.monotonic() - begin}

    def watch(self, body, begin):
        """One episode of a row of the table."""
        rows, problem = self.offer.games["rows"], field(body, "problem", int, least=0, most=10**6)
        row = field(body, "row", str)
        if row not in rows or problem >= len(rows[row]):
            raise Refused(404, f"there is no episode of {row[:100]!r} with problem {problem}")
        return rows[row][problem]


def program(body):
    """The text of a request, with \\n line ends."""
    text = field(body, "text", str)
    if len(text) > LONGEST:
        raise Refused(413, f"the program has {len(text)} characters: at most {LONGEST} are read")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise Refused(400, "text is not valid Unicode") from None
    return text.replace("\r\n", "\n")
