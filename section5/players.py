"""The human and the assistant as language models on servers, for the game of simhuman.play.

    PromptedHuman      pi_H, an instruct model that is asked (Section 5.1)
    BaseHuman          pi_H, a base model that continues statement and code
    ServedAssistant    an assistant that continues the code on a server
    PromptedAssistant  an instruct model that retypes the code and goes on

The game is played in tokens and servers speak in text; the tokens are those of one tokenizer for
all rows, with which K_H, N and the discounted pass rate count. The prompts are files in prompts/,
which a person can edit, and are kept with the results.
"""

import dataclasses
import math
import threading
from pathlib import Path

import torch

import simhuman
from section5 import text
from section5.client import TooLong
from support.cli import UserError, derived_seed
from support.files import read_text

PROMPTS = Path(__file__).with_name("prompts")
REASONS = 400   # tokens for her reasons and verdict
WORD = 20       # tokens for a verdict alone
AROUND = 60     # tokens for what models write around the code


def prompt(name, **values):
    """The prompt in a file, with values in place of {names}; a UserError if it is unusable."""
    path = PROMPTS / f"{name}.txt"
    try:
        return read_text(path).format(**values)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} cannot be used ({type(error).__name__}: {error}): names in braces "
                        f"are {', '.join(values)}; write other braces twice") from None


def all_prompts():
    """{name: text} of the prompts as they are now, for the results."""
    return {path.stem: read_text(path) for path in sorted(PROMPTS.glob("*.txt"))}


def seed_of(seed, *purpose):
    """A seed for one call, as servers take them."""
    return derived_seed(seed, " ".join(map(str, purpose))) % 2**31


class PromptedHuman:
    """pi_H: an instruct model that knows the problem, and is asked what she does.

    goals are statements. She reads a suggestion, gives reasons and a verdict, and then writes at
    most turn_tokens tokens. An answer without a verdict is asked for once more, and then counts as
    a rejection: `unclear` of `asked` answers were. With FINISH the code is complete as it is.
    """

    def __init__(self, server, encoding, turn_tokens, temperature, seed):
        self.server, self.encoding, self.turn_tokens = server, encoding, turn_tokens
        self.temperature, self.seed = temperature, seed
        self.asked = self.unclear = self.round = 0
        self.full = False  # the code does not fit into her context any more

    def begin(self, goals):
        self.goals, self.finished = list(goals), [False] * len(goals)

    def select(self, rows):
        self.goals, self.finished = (
            [some[row] for row in rows] for some in (self.goals, self.finished))

    def has_room(self, row, code, tokens):
        return not self.full  # the server says if a prompt is too long

    def read(self, codes, suggestions):
        """([], accepted or not) for each row's suggestion: a server does not give her costs."""
        self.round += 1
        verdicts = [new and self.verdict(goal, code, new)
                    for goal, code, new in zip(self.goals, codes, suggestions)]
        self.finished = [found == "finish" for found in verdicts]
        return [([], found == "accept") for found in verdicts]

    def verdict(self, statement, code, suggestion):
        """accept, reject or finish."""
        code, new = map(self.encoding.decode, (code, suggestion))
        question = [{"role": "user", "content": prompt(
            "human_read", statement=statement, code=code, suggestion=new, both=code + new)}]
        answer = self.chat(question, REASONS, "read", statement)
        found = text.verdict(answer)
        if self.full:
            return "reject"
        if found is None:
            question += [{"role": "assistant", "content": answer},
                         {"role": "user", "content": prompt("human_again")}]
            found = text.verdict(self.chat(question, WORD, "again", statement))
        self.asked += 1
        self.unclear += found is None
        return found or "reject"

    def type(self, codes, stop_tokens, generator):
        """(what she writes after each code, whether she ends the episode)."""
        written = [([], True) if done else self.write(goal, self.encoding.decode(code))
                   for goal, code, done in zip(self.goals, codes, self.finished)]
        return [new for new, _ in written], [done for _, done in written]

    def write(self, statement, code):
        """(the next tokens, whether the program is complete)."""
        question = [{"role": "user", "content": prompt(
            "human_write", statement=statement, code=code)}]
        # Models repeat the code, or its last line: room for that, of which nothing counts.
        room = self.turn_tokens + AROUND + len(self.encoding.encode_ordinary(code))
        for purpose in ("write", "write again"):  # an answer that adds nothing may be a slip
            new, done = text.continuation(code, self.chat(question, room, purpose, statement))
            if self.full or new or done:
                break
        new, K = self.encoding.encode_ordinary(new), self.turn_tokens
        return new[:K], not self.full and (done and len(new) <= K or not new)

    def chat(self, messages, max_tokens, purpose, statement):
        """Her answer; "" once what she is asked does not fit into her context."""
        try:
            return self.answer(messages, max_tokens,
                               seed_of(self.seed, purpose, self.round, statement))
        except TooLong:
            self.full = True
            return ""

    def answer(self, messages, max_tokens, seed):
        """The server's answer to a chat; raises TooLong."""
        return self.server.chat(messages, max_tokens, self.temperature, seed)


class BaseHuman(PromptedHuman):
    """pi_H: a base model, which continues the statement as a comment and the code.

    She writes by continuing the text; the end of the text, or a line that begins another problem,
    ends her program. The question for a verdict is a text that she continues too.
    """

    END = "\n# Problem"

    def write(self, statement, code):
        """(the next tokens, whether the program is complete)."""
        comment = "".join(f"# {line}".rstrip() + "\n" for line in
                          f"Problem\n{statement}\n\nSolution in Python".splitlines())
        try:
            answer = self.server.complete(
                comment + code, self.turn_tokens, self.temperature,
                seed_of(self.seed, "write", self.round, statement), [self.END])
        except TooLong:
            self.full = True
            return [], False
        new = self.encoding.encode_ordinary(answer)
        return new[:self.turn_tokens], not new

    def answer(self, messages, max_tokens, seed):
        """Over /v1/completions: a base model has no template for a chat."""
        asked = "\n\n".join(message["content"] for message in messages)
        return self.server.complete(f"{asked}\n\nAnswer:\n", max_tokens, self.temperature, seed,
                                    ["\nProblem:"])  # it would go on with another one


# ------------------------------------------------------------------- assistants


_one_at_a_time = threading.Lock()


class LocalAssistant(simhuman.Assistant):
    """A checkpoint in this process, which several episodes use in turn."""

    def suggest(self, codes, stop_tokens, generator):
        with _one_at_a_time:
            return super().suggest(codes, stop_tokens, generator)


@dataclasses.dataclass
class ServedAssistant(simhuman.Nobody):
    """pi_R on a server: it continues the code, up to its end of text.

    max_cost: a threshold in bits on the cost of its own text, for which the server must give
    logprobs; infinite for none.
    """

    server: object
    encoding: object
    max_tokens: int
    max_cost: float = math.inf
    temperature: float = 1.0
    knows_goal: bool = False

    def suggest(self, codes, stop_tokens, generator):
        """What it writes after each code. [] is silence."""
        seeds = torch.randint(2**31, (len(codes),), generator=generator,
                              device=generator.device).tolist()
        return [self.encoding.encode_ordinary(self.suggestion(
            self.encoding.decode(ids), seed))[:self.max_tokens] for ids, seed in zip(codes, seeds)]

    def suggestion(self, code, seed):
        """The text of one suggestion; none for code that does not fit into its context."""
        if not code:
            return ""  # servers refuse an empty prompt
        try:
            return self.continued(code, seed) if self.max_cost == math.inf else \
                self.stopped(code, seed)
        except TooLong:
            return ""

    def stopped(self, code, seed):
        """What it writes before its own cost exceeds max_cost."""
        new, total = "", 0.0
        for token, cost in self.server.complete_with_costs(
                code, self.max_tokens, self.temperature, seed):
            total += cost
            if total > self.max_cost:
                break
            new += token
        return new

    def continued(self, code, seed):
        return self.server.complete(code, self.max_tokens, self.temperature, seed)


class PromptedAssistant(ServedAssistant):
    """An instruct model as assistant: it retypes the code, and what follows is its suggestion."""

    def continued(self, code, seed):
        room = self.max_tokens + AROUND + len(self.encoding.encode_ordinary(code))
        question = [{"role": "user", "content": prompt("assistant", code=code)}]
        new, _ = text.continuation(code, self.server.chat(question, room, self.temperature, seed))
        return new
