"""The game of Section 3: a simulated human writes a program with an assistant's help.

Each round the assistant makes a suggestion, the human reads it and accepts or rejects it, and then
types a few tokens of her own or ends the episode. She knows the problem; both see the code so far:

    the prefix     n = int(input())\\n a =
    suggestion      list(map(int, input().split()))\\n     2.6 bits for 11 tokens: accepted
    she types      out = [                              and the next round begins
    suggestion     v for v in a if v > 0]\\n             35 bits for 11 tokens: rejected
    she types      v * v for v in

All problems are played in lockstep, as one batch with KV caches that live as long as the game.
Episodes are plain data, metrics pure functions of them, and support/judge.py runs the programs.
"""

import copy
import dataclasses
import math

import numpy as np
import torch
from tqdm import tqdm

from model import KVCache, extend, sample, token_nll

# ------------------------------------------------------------------- when she accepts
# The paper's human is asked whether she accepts each suggestion. Ours accepts what she might have
# written herself: she tests whether a text is typical of her, with a known rate of false
# rejections. That rate, her care, is by default the customary 5%; it is not fitted to anything.


def typical_limits(costs, care, longest):
    """The most that she lets n suggested tokens cost, in bits, for n = 1..longest: a list of float.

    costs: one array (N,) for each program that she wrote alone: bits per token under pi_H, which
    reads the statement. The limit for n tokens is the (1 - care) quantile over all runs of n
    consecutive tokens, so at most a share `care` of the runs costs more. Beyond the median length
    of her programs the limit stays constant, and she rejects a larger share: few runs are that
    long, and most come from programs that she failed to end.

    Example: costs [0, 1, 0, 3] and care 0.25. Three in four of the single tokens cost at most 1
    bit. The pairs cost 1, 1 and 3: two in three cost at most 1, which is too few, so the limit is
    3. The triples cost 1 and 4, the whole 4. For n = 1..5 the limits are [1, 3, 4, 4, 4].
    """
    lengths = [len(nll) for nll in costs]
    cum = np.full((len(costs), max(lengths) + 1), np.nan)                  # (programs, N + 1)
    for row, nll in zip(cum, costs):
        row[:len(nll) + 1] = np.concatenate([[0.0], np.cumsum(nll)])
    limits = []
    for n in range(1, min(longest, int(np.median(lengths))) + 1):
        runs = cum[:, n:] - cum[:, :-n]                                    # (programs, N - n + 1)
        limits.append(float(np.quantile(runs[~np.isnan(runs)], 1 - care, method="inverted_cdf")))
    return limits + limits[-1:] * (longest - len(limits))


def typical(nll, limits):
    """Accepts what she might have written herself: n tokens that cost at most limits[n - 1] bits.

    nll: the bits of each suggested token under pi_H; limits: from `typical_limits`.
    Example: limits [1, 3]: she accepts costs [0, 2], and rejects [2] and [2, 2].
    """
    return sum(nll) <= limits[min(len(nll), len(limits)) - 1]


def attentive(rng, attention, rounds, problems):
    """Whether she reads the suggestion of each round and problem: an array of bool, that shape.

    What she does not read she accepts as it is, as people do who trust an assistant. attention: the
    share that she reads. rng: a NumPy generator of her own, so that at 1 nothing else changes.
    Example: numbers drawn .95, .35, .65. With attention .7 she reads the last two, with .4 only the
    second: whatever she reads, she would read if she were more attentive too.
    """
    return rng.random((rounds, problems)) < attention


# ------------------------------------------------------------------- episodes


@dataclasses.dataclass
class Turn:
    """One round of Section 3: a suggestion, its cost under the human's model, what she did."""

    suggestion: list          # token ids; empty if the assistant was silent
    nll: list                 # bits of each suggested token under pi_H, given problem and code
    accepted: bool            # False if nothing was offered
    typed: list = dataclasses.field(default_factory=list)  # the token ids that she then typed
    read: bool = True         # False if she accepted a suggestion without reading it


@dataclasses.dataclass
class Episode:
    """One problem, from the first round to the last. The metrics are functions of episodes."""

    problem: int              # index into the list of problems
    turns: list = dataclasses.field(default_factory=list)
    finished: bool = False    # she ended it herself, with a stop token
    passed: bool = False      # the judge found that the program passes every test

    @classmethod
    def from_dict(cls, plain):
        """The inverse of dataclasses.asdict, for an episode read from JSON."""
        return cls(**{**plain, "turns": [Turn(**turn) for turn in plain["turns"]]})

    @property
    def tokens_read(self):
        """All suggested tokens, rejected ones and those that she did not look at included."""
        return sum(len(turn.suggestion) for turn in self.turns)

    @property
    def tokens_written(self):
        """How many tokens the human typed."""
        return sum(len(turn.typed) for turn in self.turns)

    @property
    def offered(self):
        """How many suggestions were not empty."""
        return sum(bool(turn.suggestion) for turn in self.turns)

    @property
    def accepted(self):
        """How many suggestions she accepted."""
        return sum(turn.accepted for turn in self.turns)

    @property
    def tokens_accepted(self):
        """How many tokens of the program the assistant wrote."""
        return sum(len(turn.suggestion) for turn in self.turns if turn.accepted)

    @property
    def code(self):
        """The program so far: accepted suggestions and typed tokens in order (token ids)."""
        return [i for turn in self.turns for i in turn.suggestion * turn.accepted + turn.typed]


# ------------------------------------------------------------------- the two players


class Player:
    """A language model in a game: what it knows, and its cache of the code so far.

    `play` calls `begin` once; in each round `suggest` of the assistant, then `read` and `type` of
    the human; then `has_room`, and `select` once some episodes have ended. Any class with these
    methods can play, a human with `turn_tokens`, an assistant with `max_tokens` and `knows_goal`:
    see realcode/replay.py and section5/players.py.
    """

    def begin(self, known):
        """Starts a game. known: what it reads before the code, as token ids, for each problem."""
        self.known, self.cache = known, KVCache(self.model, len(known))

    def select(self, rows):
        """Continues with these rows only, in the order given."""
        self.known, self.cache = [self.known[row] for row in rows], self.cache.select(rows)

    def has_room(self, row, code, tokens):
        """Whether this many more tokens fit into its context."""
        return len(self.known[row]) + len(code) + tokens <= self.cache.limit

    def texts(self, codes):
        """What it reads: the code of each row, after what it knows."""
        return [known + code for known, code in zip(self.known, codes)]


@dataclasses.dataclass
class Human(Player):
    """pi_H: a language model that reads the problem statement, and how she behaves."""

    model: object
    accepts: object                # a function of the costs in bits: whether she accepts
    turn_tokens: int               # K_H, the most tokens that she types in a round (5.1)
    temperature: float = 1.0
    top_p: float = 1.0
    attention: float = 1.0         # the share of suggestions that she reads, for `attentive`

    def read(self, codes, suggestions):
        """(bits of each token, accepted or not) for each row; for silence it is ([], False)."""
        if not any(suggestions):
            return [([], False) for _ in suggestions]
        logits = extend(self.model, self.cache, self.texts(codes), suggestions)    # (B, M + 1, V)
        costs = [token_nll(row[:len(new)], torch.tensor(new, device=row.device)).tolist()
                 if new else [] for row, new in zip(logits, suggestions)]
        return [(nll, bool(nll and self.accepts(nll))) for nll in costs]

    def type(self, codes, stop_tokens, generator):
        """(what she types after each code, whether she ended the episode with a stop token)."""
        return sample(self.model, self.cache, self.texts(codes), self.turn_tokens, stop_tokens,
                      self.temperature, self.top_p, generator=generator)


@dataclasses.dataclass
class Assistant(Player):
    """pi_R: a language model that sees the code so far, with limits on a suggestion."""

    model: object
    max_tokens: int                # a cap on one suggestion, which a stop token ends earlier
    max_cost: float = math.inf     # a cap on the cost of its own text, in bits
    knows_goal: bool = False       # whether it reads the statement too, as the ceiling does
    temperature: float = 1.0
    top_p: float = 1.0

    def suggest(self, codes, stop_tokens, generator):
        """What it writes after each code, up to a stop token. [] is silence."""
        return sample(self.model, self.cache, self.texts(codes), self.max_tokens, stop_tokens,
                      self.temperature, self.top_p, self.max_cost, generator)[0]


class Nobody:
    """The assistant of a human who is alone: always silent."""

    max_tokens, knows_goal = 0, False

    def begin(self, known):
        """Has nothing to prepare."""

    select = begin  # and nothing to drop

    def has_room(self, row, code, tokens):
        return True

    def suggest(self, codes, stop_tokens, generator):
        return [[] for _ in codes]


# ------------------------------------------------------------------- the game (Section 3)


def play(goals, human, assistant, rounds, start, stop_tokens, generator, label="play",
         reads=None):
    """Plays all problems in lockstep; returns one Episode for each goal.

    For one problem, without batches and caches, it would be:
        while not finished and turns < rounds:
            suggestion = assistant.sample(start + code)          # up to a stop token
            if suggestion and (human.accepts(nll(suggestion, given=goal + code)) or not reads):
                code += suggestion
            typed, finished = human.sample(goal + code)          # at most K_H tokens
            code, turns = code + typed, turns + 1

    goals: what she knows, as token ids: for a Human the token `start`, which opens a document, and
    the problem statement. assistant: None if she is alone. label: shown on the bar, or None.
    reads: from `attentive`, whether she reads each suggestion; None: she reads all.
    """
    assistant = copy.copy(assistant or Nobody())  # it may play another game at the same time
    human.begin(goals)
    assistant.begin(goals if assistant.knows_goal else [[start]] * len(goals))
    episodes, codes = [Episode(p) for p in range(len(goals))], [[] for _ in goals]
    live, longest_round = list(range(len(goals))), human.turn_tokens + assistant.max_tokens
    with tqdm(total=len(goals), desc=label, unit="problem", leave=False,
              disable=None if label else True) as bar:
        for k in range(rounds):
            suggestions = assistant.suggest([codes[p] for p in live], stop_tokens, generator)
            answers = human.read([codes[p] for p in live], suggestions)
            for p, new, (nll, accepted) in zip(live, suggestions, answers):
                read = reads is None or not new or bool(reads[k, p])
                episodes[p].turns.append(Turn(new, nll, accepted or not read, read=read))
                codes[p] += new * episodes[p].turns[-1].accepted
            typed, finished = human.type([codes[p] for p in live], stop_tokens, generator)
            for p, tokens, done in zip(live, typed, finished):
                episodes[p].turns[-1].typed, episodes[p].finished = tokens, done
                codes[p] += tokens
            bar.update(sum(finished))
            # An episode without room for one more round ends as if its rounds were used up.
            rows = [row for row, p in enumerate(live) if not episodes[p].finished and all(
                player.has_room(row, codes[p], longest_round) for player in (human, assistant))]
            if not rows:
                break
            if len(rows) < len(live):
                live = [live[row] for row in rows]
                human.select(rows)
                assistant.select(rows)
    return episodes


# ------------------------------------------------------------------- metrics (Section 5.1)


def mean_and_error(values):
    """(mean, standard error of the mean) of one value for each problem."""
    values = np.asarray(values, dtype=float)
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def pass_at_1(episodes):
    """(share of problems whose program passes every test, its standard error over problems).

    Example: passed, failed, passed, failed -> (0.5, 0.289): the deviation .577 over sqrt(4).
    """
    return mean_and_error([episode.passed for episode in episodes])


def ratio_and_error(parts, wholes):
    """(sum of parts over sum of wholes, its standard error), one part and whole for each problem.

    The standard error of a ratio of sums comes from the residuals part - ratio * whole.
    """
    parts, wholes = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    if wholes.sum() == 0:
        return math.nan, math.nan
    ratio, n = parts.sum() / wholes.sum(), len(parts)
    residual = parts - ratio * wholes
    return ratio, math.sqrt(n / max(n - 1, 1) * (residual ** 2).sum()) / wholes.sum()


def accept_ratio(episodes):
    """(accepted over offered suggestions, pooled; its standard error), the problem as the unit.

    Example: one problem with 1 of 1 accepted, one with 1 of 3: 2/4, not the mean of 1 and 1/3.
    The residuals are .5 and -.5, so the error is sqrt(2 / 1 * .5) / 4 = .25. Nothing offered: nan.
    """
    return ratio_and_error([episode.accepted for episode in episodes],
                           [episode.offered for episode in episodes])


def discounted(episode, gamma, alpha, beta):
    """1[correct] * gamma ** (alpha * tokens read + beta * tokens written) of one episode.

    Example: gamma = 0.5, alpha = 0.1, beta = 0.5, correct, 10 read, 2 written: 0.5 ** 2 = 0.25.
    """
    return episode.passed * gamma ** (alpha * episode.tokens_read + beta * episode.tokens_written)


def discounted_pass_rate(episodes, gamma, alpha, beta):
    """DPR, the mean of `discounted` over problems, and its standard error.

    Example: the episode of `discounted` (0.25) and a failed one: (0.125, 0.125).
    """
    return mean_and_error([discounted(episode, gamma, alpha, beta) for episode in episodes])
