"""python empower.py replay --corpus PATH [--model DIR]: what would each assistant save the author?

For code without tests the human is replayed: she wants exactly the program that was written, and
accepts a suggestion if it is what comes next, token for token. The rows and the method are those of
empower.py; this file has the author, and a Lab whose programs come from a corpus.
"""

import dataclasses
import functools
import math
import time

import numpy as np

import data
import empower
from empower import completion_rules, rows_of_the_table, score
from realcode import checkpoints
from realcode.corpus import CORPUS, FIELD, STATEMENTS_FLAG, cut, kept_costs, pieces, read_programs
from realcode.given import DTYPE, check_context, given_model
from realcode.packed import packed
from realcode.suggest import numbers_only
from realcode.training import gradient
from simhuman import Episode, play
from support import checkpoint, cli, miniature, report
from support.cache import Cache
from support.cli import UserError, flag, numpy_generator, only, python_generator
from support.digest import fingerprint
from support.optim import adamw


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the experiment on real code, with a replayed author."""

    out: str = flag("out/replay", "folder for everything that a run makes")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    seed: int = flag(0, "feeds all randomness, by separate generators")
    # the programs and the language model
    corpus: str = flag("", CORPUS)
    field: str = flag("", FIELD)
    statements: bool = flag(False, STATEMENTS_FLAG)
    model: str = flag("", "a checkpoint folder or GGUF file (default: a small GPT is pre-trained)")
    dtype: str = flag("auto", DTYPE)
    held_out: int = flag(100, "programs to replay, at most a fifth of the corpus", 2)
    context: int = flag(None, "tokens of a piece; longer programs are cut into pieces (default: "
                              "256 for the small GPT, 1024 for --model)", 16)
    train_programs: int = flag(1600, "pieces to learn from at most, one state of each (with "
                                    "few, finetune --all-states learns more)", 10)
    vocab_size: int = flag(2048, "tokens of the vocabulary at most, including all 256 bytes", 257)
    width: int = flag(192, "hidden size of the model", 32)
    layers: int = flag(4, "layers of the model", 1)
    pretrain_tokens: int = flag(1_000_000, "tokens of pre-training; the corpus is repeated", 1)
    pretrain_batch: int = flag(16, "documents per update", 1)
    pretrain_lr: float = flag(0.02, "Muon's learning rate; AdamW's is a tenth", 0)
    # the method
    eta: float = flag(0.32, "threshold of Empower, bits (Section 5.1)", 0)
    eta_wide: float = flag(4.0, "threshold of the second Empower row, bits (Section 5.3)", 0)
    sft_batch: int = flag(8, "examples per fine-tuning update; larger ones do not learn to stop", 1)
    sft_lr: float = flag(None, "AdamW's learning rate in fine-tuning (default: 0.001 for the small "
                               "GPT, 1e-5 for --model)", 0)
    # the game and its discounted pass rate (5.1)
    turn_tokens: int = flag(None, "K_H, most tokens that the author types in a turn; N of SFT-N "
                                  "and Base-N is K_H or twice that (default: 4 for the small GPT, "
                                  "10 for --model, as in 5.1)", 1)
    max_suggestion: int = flag(100, "cap on a suggestion, tokens", 1)
    temperature: float = flag(0.0, "sampling of assistants; 0 takes the likeliest token", 0)
    top_p: float = flag(1.0, "share of the probability that sampling keeps", 0, 1)
    gamma: float = flag(0.999, "discount of DPR", 0, 1)
    alpha: float = flag(0.1, "DPR's weight of a token read", 0)
    beta: float = flag(0.5, "DPR's weight of a token written", 0)

    def __post_init__(self):
        for name, ours, given in (("context", 256, 1024), ("sft_lr", 1e-3, 1e-5),
                                  ("turn_tokens", 4, 10)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, given if self.model else ours)
        cli.check_ranges(self)

    @property
    def assistant_temperature(self):
        return self.temperature  # the author is not sampled


def replay(cfg):
    """The paper's rows on code without tests: what does each assistant save its author?

    Programs are split by groups of near-duplicates. The assistants learn from one part; on the
    other, the author wants exactly the program that was written. Everything is kept in --out.
    """
    begin, lab, rules = time.time(), ReplayLab(cfg), completion_rules(cfg)
    trained = {name: lab.train(name, rule) for name, rule in rules.items()}
    stopping = [lab.stopping(name, rule, trained[name]) for name, rule in rules.items()]
    rows = rows_of_the_table(cfg, lab.base, trained)
    del rows[report.CEILING]  # here the goal is the program itself
    episodes = {name: lab.play(name, assistant) for name, assistant in rows.items()}
    return report.conclude(lab, begin, trained, stopping, episodes, replayed=True)


class ReplayLab(empower.Lab):
    """The Lab of a replay: programs and goals are pieces of what people wrote.

    goals: the tokens that the author wants and what follows them; ends: how many she wants.
    """

    def __init__(self, cfg):
        self.cfg, self.device = cfg, cli.pick_device(cfg.device)
        texts, held_out = read_programs(cfg)
        if len(held_out) < 2:
            raise UserError(f"{cfg.corpus} has {len(texts) + len(held_out)} programs, of which "
                            f"{len(held_out)} can be held out: a replay needs 2, and so at least "
                            "10 programs that do not resemble each other")
        base = given_model(cfg, self.device) if cfg.model else None
        model = base.model if base else miniature.new_model(cfg, cfg.vocab_size)
        check_context(cfg, model.config.max_position_embeddings,
                      cfg.max_suggestion + cfg.turn_tokens)
        self.kept = Cache(cfg.out, self.device, checkpoints if base else checkpoint)
        print(f"Fine-tune {len(completion_rules(cfg))} assistants and replay {len(held_out)} "
              "programs with each" + (": the bars show how long it takes." if base else
                                      ", after pre-training a small GPT on the other programs:\n"
                                      "15 to 20 minutes on 2 CPU cores, less if stages are "
                                      "reused."))
        cli.describe(cfg, model, self.device)
        self.base = base or self.kept("base", small_gpt, empower.train, only(
            cfg, "seed", "context", "pretrain_tokens", "vocab_size", "width", "layers",
            "pretrain_batch", "pretrain_lr"), texts, device=self.device)
        if base:
            self.fine_tuning = adamw, functools.partial(gradient, micro_batch=4, clip=1.0)
        self.programs = self.scored_pieces(texts, cfg.train_programs)
        self.goals, self.ends = drawn_goals(cfg, self.base, held_out)

    def scored_pieces(self, texts, most):
        """(token ids, costs, whether its program ends there) of `most` pieces of programs (4.1)."""
        found = cut(self.base.encoding, texts, self.cfg.context)
        found = python_generator(self.cfg, "pieces").sample(
            found, min(len(found), self.cfg.train_programs))[:most]
        costs = self.costs([ids for ids, _ in found])
        print(f"  {np.concatenate(costs).mean():.2f} bits a token on {len(found)} pieces to learn "
              "from")
        return [(ids, nll, ends) for (ids, ends), nll in zip(found, costs)]

    def costs(self, texts):
        """The costs of texts (token ids), kept as soon as a few of them are known."""
        key = fingerprint([self.base.model, texts, kept_costs])
        return kept_costs(self.kept.stages / f"costs-{key}", self.base, texts)

    def play(self, name, assistant):
        """Section 3 with the replayed author: the episodes of a row, one for each goal."""
        return list(map(Episode.from_dict, self.kept(
            f"row {name}", replayed_game, only(self.cfg, "seed", "context", "turn_tokens"), name,
            self.base.encoding, self.goals, self.ends, assistant, device=self.device)))


def replayed_game(cfg, name, encoding, goals, ends, assistant, device="cpu"):
    """Section 3 with the replayed author: the episodes, one for each goal, as plain data."""
    models = [assistant.model] if assistant else []
    with packed(*models), numbers_only(*models):
        episodes = play(goals, ReplayedAuthor(cfg.turn_tokens, ends), assistant, cfg.context,
                        encoding.start, encoding.stops,
                        cli.torch_generator(cfg, f"game of {name}", device), name)
    return list(map(dataclasses.asdict, map(cut_at_end, episodes, ends)))


def small_gpt(train, cfg, texts, device="cpu"):
    """The Checkpoint of a small GPT that has read cfg.pretrain_tokens of the programs, repeated."""
    encoding = data.train_tokenizer(texts, cfg.vocab_size)
    return miniature.pretrain(train, cfg, encoding, documents(cfg, encoding, texts), device)


def documents(cfg, encoding, texts):
    """What the small GPT reads: pieces of programs, shuffled in each pass over the corpus."""
    found = [[encoding.start, *ids] + [encoding.stop] * ends  # a stop token only at the end
             for ids, ends in cut(encoding, texts, cfg.context)]
    rng = python_generator(cfg, "documents")
    passes = cfg.pretrain_tokens / sum(map(len, found))
    shuffled = [ids for _ in range(math.ceil(passes)) for ids in rng.sample(found, len(found))]
    return shuffled[:math.ceil(passes * len(found))]


def drawn_goals(cfg, base, texts):
    """A random piece of each program: ([its tokens and what follows], [its length]).

    What follows is kept so that a suggestion that is right beyond the end is not rejected.
    """
    rng, goals, ends = numpy_generator(cfg, "goals"), [], []
    for text in texts:
        parts = pieces(base.encoding, text, cfg.context)
        k = int(rng.integers(len(parts)))
        following = [i for part in parts[k + 1:] for i in part]
        goals.append(parts[k] + following[:cfg.max_suggestion])
        ends.append(len(parts[k]))
    unseen = np.concatenate(score(base.model, [goal[:end] for goal, end in zip(goals, ends)],
                                  base.encoding.start))
    print(f"  {unseen.mean():.2f} bits a token on one piece of each of {len(goals)} held-out "
          f"programs, {np.mean(ends):.0f} tokens on average"
          + "; with so few, the intervals mean little" * (len(goals) < 10))
    return goals, ends


class ReplayedAuthor:
    """A human who wants exactly the program that was written; she takes simhuman.Human's place.

    Her goals are programs (token ids). She accepts a suggestion if it is what comes next, token
    for token, and then, as in every round, types the next K_H tokens.
    Example: her program is [1, 2, 3, 4]; after [1] she accepts [2, 3] and rejects [2, 4].

    ends: how many tokens of each goal she wants; the rest is only compared with suggestions.
    """

    def __init__(self, turn_tokens, ends):
        self.turn_tokens, self.ends = turn_tokens, ends

    def begin(self, goals):
        self.rows = list(zip(goals, self.ends, strict=True))

    def select(self, rows):
        self.rows = [self.rows[row] for row in rows]

    def has_room(self, row, code, tokens):
        return True  # no model, no context that could fill up

    def read(self, codes, suggestions):
        """([], accepted or not) for each row's suggestion: without a model, no costs."""
        return [([], bool(new) and goal[len(code):len(code) + len(new)] == new)
                for (goal, _), code, new in zip(self.rows, codes, suggestions)]

    def type(self, codes, stop_tokens, generator):
        """The next tokens of each program, and whether they complete it."""
        typed = [goal[len(code):min(len(code) + self.turn_tokens, end)]
                 for (goal, end), code in zip(self.rows, codes)]
        return typed, [len(code) + len(new) >= end
                       for (_, end), code, new in zip(self.rows, codes, typed)]


def cut_at_end(episode, end):
    """The episode without what an accepted suggestion wrote beyond the end of the piece.

    What follows a piece is not part of the game: it is neither read nor saved. A finished program
    is the one that its author wanted, so it passes.
    """
    beyond = len(episode.code) - end
    if beyond > 0:
        last = episode.turns[-1]
        last.suggestion = last.suggestion[:-beyond]
    episode.passed = episode.finished
    return episode
