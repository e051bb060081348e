"""What the page itself asks for: the costs of a program, suggestions, and episodes to watch."""

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

    def about(self, body, arrived):
        """What there is to choose from."""
        games = self.offer.games
        return {"assistants": [{"name": name, "needs_eta": choice.needs_eta}
                               for name, choice in self.models.choices.items()],
                "texts": [{"name": name, "text": text} for name, text in self.offer.texts],
                "rows": list(games["rows"]), "problems": games["problems"]}

    def read(self, body, arrived):
        """The costs of a program: {"tokens": [...], "of": how many tokens it has}.

        A token is {"text", "bits", "likeliest": [[text, probability]]}.
        """
        tokens, of = self.models.read(field(body, "client", str), text_of(body)) or ([], 0)
        return {"of": of, "tokens": [{"text": text, "bits": bits, "likeliest": likeliest}
                                     for text, bits, likeliest in tokens]}

    def suggest(self, body, arrived):
        """What an assistant suggests after a text, and the cost under its own model."""
        name = field(body, "assistant", str)
        if name not in self.models.choices:
            raise Refused(404, f"there is no assistant {name[:100]!r}")
        request = Request(text_of(body), costs=True)
        if self.models.choices[name].needs_eta:
            request = Request(text_of(body), field(body, "eta", float, 0.32, 0, 1000), costs=True)
        found = self.models.suggest(name, field(body, "client", str), request)
        if found is None:
            return {"overtaken": True, "suggestion": ""}
        return {"suggestion": found.text, "tokens": len(found.pieces), "bits": sum(found.costs)}

    def watch(self, body, arrived):
        """One episode of a row of the table."""
        rows, problem = self.offer.games["rows"], field(body, "problem", int, least=0, most=10**6)
        row = field(body, "row", str)
        if row not in rows or problem >= len(rows[row]):
            raise Refused(404, f"there is no episode of {row[:100]!r} with problem {problem}")
        return rows[row][problem]


def text_of(body):
    """The text of a request, with \\n line ends."""
    return checked_text(field(body, "text", str))


def checked_text(text):
    """A text with \\n line ends; Refused if it is too long or no valid Unicode."""
    if len(text) > LONGEST:
        raise Refused(413, f"the program has {len(text)} characters: at most {LONGEST} are read")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise Refused(400, "text is not valid Unicode") from None
    return text.replace("\r\n", "\n")
