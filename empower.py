"""Training LLM agents to empower humans (arXiv 2510.13709): write what is obvious, then stop.

All it takes is programs that people wrote. An ordinary language model gives the cost of each next
token in bits; an assistant is fine-tuned to write exactly the cheap part and then a stop token, so
that the human's next keystroke is one that matters.

    l_{1:N}   a program, N tokens          pi_hat  the scorer: the base model, without the goal
    l_{1:n}   its prefix, the state        pi_R    an assistant: pi_hat, fine-tuned
    eta       the threshold, in bits       pi_H    the human: the same model, reading the goal too
    i*        how many tokens are obvious  B, T, V batch, positions, vocabulary

    python empower.py            the whole experiment, a few minutes on a laptop CPU
    python empower.py --help     every setting with its unit and its place in the paper

The method is in four files: this one, data.py (tokens, batches), model.py (the GPT), simhuman.py
(the human, the game, the metrics). support/ holds the contest and the machinery: skip it at first.
"""

import copy
import dataclasses
import functools
import math
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import data
import simhuman
from model import KVCache, document_nll, sample, token_nll
from simhuman import Assistant, Episode, Human
from support import cli, miniature, report
from support.cache import Cache
from support.cli import bar, flag, numpy_generator, only, python_generator, torch_generator
from support.optim import adamw

# ------------------------------------------------------------------- Algorithm 1 (Section 4.2)


def empower_length(nll, eta):
    """i* of Algorithm 1 and Eq. 2: max { i : -log2 pi_hat(l_{n+1:n+i} | l_{1:n}) <= eta }.

    That is how many tokens can be written before they cost more than eta bits. A sum equal to eta
    is kept, as in Algorithm 1; Eq. 2 is strict.
    nll (N - n,): the cost in bits of each token that follows the prefix, under pi_hat.
    Example: costs [0.25, 0.5, 2, 0] with eta = 1 sum to [0.25, 0.75, 2.75, 2.75]: i* = 2.
    """
    return int((np.cumsum(nll, dtype=float) <= eta).sum())  # <- this line is the paper


# Why cheap text leaves the human no choice (Section 4.3): her empowerment is the information her
# next token carries about the future text l+. It cannot exceed that token's
# entropy, which the cost of the token she wrote estimates from one sample:
#     I(l^H_{n+1}; l+ | l_{1:n})  <=  H(l^H_{n+1} | l_{1:n})  ~  -log2 pi_hat(l_{n+1} | l_{1:n})
# So the assistant may write what costs little. figures/bound.py measures both steps.


def empower_lengths(nll, eta):
    """i* for every state n = 0 .. N-1 of a program at once: finite costs (N,) -> lengths (N,).

    i tokens from state n cost cum[n + i] - cum[n], and cum never falls: a binary search. Its sums
    are rounded differently, which matters only where one of them equals eta to the last bit.
    Example: costs [0.25, 0.5, 2, 0] with eta = 1: [2, 1, 0, 1].
    """
    cum = np.concatenate([[0.0], np.cumsum(nll, dtype=float)])                   # (N + 1,)
    return np.searchsorted(cum, cum[:-1] + eta, side="right") - 1 - np.arange(len(nll))


# ------------------------------------------------------------------- completion rules (5.1)
# rule(costs after the prefix, numpy Generator) -> how many tokens an assistant learns to write,
# which may be more than are left. Empower differs from its baselines only in its rule.


def empower(eta):
    """Algorithm 1: the tokens that together cost at most eta bits."""
    return lambda nll, rng: empower_length(nll, eta)


def sft(n):
    """The next n tokens, whatever they cost."""
    return lambda nll, rng: n


def sft_rand(most):
    """A random number of tokens, uniform in 1..most."""
    return lambda nll, rng: int(rng.integers(1, most + 1))


def completion_rules(cfg):
    """{name: rule}, one for each trained assistant. Add yours here: it gets its own row."""
    K = cfg.turn_tokens  # as in the paper, SFT-N learns as many tokens as she types, or twice that
    return {f"SFT-{K}": sft(K), f"SFT-{2 * K}": sft(2 * K), "SFT-RAND": sft_rand(3 * K),
            f"Empower ({cfg.eta:g})": empower(cfg.eta),
            f"Empower ({cfg.eta_wide:g})": empower(cfg.eta_wide)}


# ------------------------------------------------------------------- scoring (4.1)


@torch.no_grad()
def score(model, programs, start, cost=token_nll):
    """Cost in bits of every token of every program: a list of arrays (N,).

    One forward pass serves all states, since a token's cost does not depend on the state that is
    drawn. The model reads only `start`, the token that opens a document, and the program. cost: a
    function of (logits, ids). ValueError: a program is longer than the model's context.
    """
    costs, batches = [None] * len(programs), data.batches_by_length(list(map(len, programs)), 8192)
    for some in bar(batches, "score"):
        ids, _ = data.collate([([start, *programs[i]], 0) for i in some])
        nll = document_nll(model, ids.to(model.device), cost).cpu().numpy()      # (B, T-1)
        for i, row in zip(some, nll):
            costs[i] = row[:len(programs[i])]
    return costs


def choose_completions(programs, rule, states_rng, lengths_rng):
    """[(prefix, completion, whether it ends with a stop)], at one uniform state of each program.

    programs: [(token ids, costs in bits, whether the text ends there)]. A completion that reaches
    the end of a piece gets no stop token, because the text went on. Both rngs are NumPy generators.
    """
    states = data.draw_states(states_rng, [len(ids) for ids, *_ in programs])
    completions = []
    for n, (ids, nll, ends) in zip(states, programs):
        rest = np.asarray(nll)[n:]
        rest.flags.writeable = False  # other rules get these costs too
        completion = ids[n:n + rule(rest, lengths_rng)]
        completions.append((ids[:n], completion, ends or n + len(completion) < len(ids)))
    return completions


# ------------------------------------------------------------------- supervised fine-tuning (4.2)


def sft_example(encoding, prefix, completion, stop=True):
    """(token ids, where the loss starts): start, prefix | completion, stop."""
    ids = [encoding.start, *prefix, *completion] + [encoding.stop] * stop
    return ids, 1 + len(prefix)


def sft_loss(model, ids, labels):
    """The sum of -log p(label), in nats, over all labels but -100: ids, labels (B, T)."""
    ids, targets = ids[:, :-1].to(model.device), labels[:, 1:].to(model.device)  # (B, T-1)
    logits = model.lm_head(model.hidden(ids)[targets >= 0])  # (labels, V): few of the positions
    return F.cross_entropy(logits.float(), targets[targets >= 0], reduction="sum")


def sft_gradient(model, batch):
    """Adds the gradient of the mean loss over a batch; returns this loss in nats per label."""
    ids, labels = data.collate(batch)
    loss = sft_loss(model, ids, labels) / int((labels[:, 1:] >= 0).sum())
    loss.backward()
    return loss.item()


def learning_rate(update, updates):
    """Multiplier: linear warm-up over the first 2% of updates, linear decay over the last 60%."""
    return min(1, (update + 1) / (0.02 * updates), (updates - update) / (0.6 * updates))


def train(model, examples, batch_size, optimizers, rng, gradient=sft_gradient, done=0):
    """One pass over `examples`, (token ids, where the loss starts) each: yields each update's loss.

    Pre-training and fine-tuning share this loop. It is a generator: nothing happens until its
    losses are consumed, and between two of them the caller may show or save the training, and go on
    later after `done` updates. gradient: like `sft_gradient`; that of realcode/training.py takes
    micro-batches and several processes. ArithmeticError: a loss is not finite.
    """
    batches = data.make_batches(examples, batch_size, rng)
    for update in range(done, len(batches)):
        loss = gradient(model, batches[update])
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss of update {update + 1} is not finite")
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * learning_rate(update, len(batches))
            optimizer.step()
        model.zero_grad()
        yield loss


# ------------------------------------------------------------------- settings

UNLIMITED_TOKENS = 400  # a cap on a program that she writes alone: about six ordinary ones


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the experiment on the generated contest; each field is also a flag."""

    out: str = flag("out", "folder for everything that a run makes")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    seed: int = flag(0, "feeds all randomness, by separate generators")
    # the method
    eta: float = flag(0.32, "threshold of Empower, bits (Section 5.1)", 0)
    eta_wide: float = flag(4.0, "threshold of the second Empower row, bits (Section 5.3)", 0)
    sft_batch: int = flag(16, "examples per update; larger batches make too few updates", 1)
    sft_lr: float = flag(0.001, "AdamW's learning rate (chosen by figures/make.py tune)", 0)
    # the problems and the language model
    train_problems: int = flag(4138, "problems to learn from, as many as in the paper (5.1)", 10)
    dev_problems: int = flag(100, "problems on which constants are chosen", 1)
    held_out_problems: int = flag(300, "problems for the results, with meanings never seen", 2)
    vocab_size: int = flag(640, "maximum size of the vocabulary, including all 256 bytes", 257)
    width: int = flag(128, "hidden size of the model, a multiple of 32", 32)
    layers: int = flag(3, "layers of the model", 1)
    pretrain_steps: int = flag(1400, "updates of pre-training", 1)
    pretrain_batch: int = flag(16, "documents per update", 1)
    pretrain_lr: float = flag(0.02, "Muon's learning rate; AdamW's is a tenth", 0)
    # the human and the game (5.1)
    care: float = flag(0.05, "her care: the share of her own text that she would reject (0.05, the "
                             "customary rate of false rejections); larger is more careful", 0, 1)
    attention: float = flag(1.0, "share of the suggestions that she reads; the others she accepts "
                                 "as they are", 0, 1)
    attention_low: float = flag(0.65, "a second attention, at which some rows are played too: "
                                      "where Base is accepted as often as in the paper (chosen by "
                                      "figures/make.py calibrate)", 0, 1)
    turn_tokens: int = flag(4, "K_H, most tokens that she types in a round (5.1: 10); N of SFT-N "
                                "and Base-N is K_H or twice that", 0, 1000)
    rounds: int = flag(19, "most rounds of a game; K_H x rounds is 1.25 programs (in 5.1 too, "
                           "if its programs have 400 tokens, which we assume)", 1)
    max_suggestion: int = flag(100, "cap on every suggestion, tokens", 0, 2000)
    temperature: float = flag(1.0, "of sampling, for human and assistants (5.1: defaults)", 0)
    assistant_temperature: float = flag(None, "of the assistants alone; 0 is greedy (default: "
                                              "--temperature)", 0)
    top_p: float = flag(1.0, "share of the probability that sampling keeps", 0, 1)
    # the discounted pass rate (5.1)
    gamma: float = flag(0.9935, "discount: 0.999 ** (400 / tokens of a program), which discounts "
                                "a program as in 5.1 if its programs have 400 tokens", 0, 1)
    alpha: float = flag(0.1, "weight of a token read in DPR (5.1)", 0)
    beta: float = flag(0.5, "weight of a token written in DPR (5.1)", 0)

    __post_init__ = cli.check_ranges


# ------------------------------------------------------------------- the roles (5.1)
# Both functions read only their arguments and touch no folder, so the cache can keep their results.


def write_programs(cfg, base, human, problems):
    """Her one attempt at each problem, unfiltered: [{statement, program, ended, nll, her_nll}].

    ended: whether she ended the program herself. nll: the cost in bits of each token under pi_hat,
    which does not read the statement; her_nll: under pi_H, `human`, which does. None is empty.
    """
    encoding, knows = base.encoding, miniature.goals(base.encoding, problems)
    generator, programs, ended = torch_generator(cfg, "programs", human.device), [], []
    for k in bar(range(0, len(problems), 512), "human writes"):
        texts = knows[k:k + 512]
        new, stopped = sample(human, KVCache(human, len(texts)), texts, UNLIMITED_TOKENS,
                              encoding.stops, cfg.temperature, cfg.top_p, generator=generator)
        ended += stopped
        programs += [encoding.encode_ordinary(encoding.decode(ids)) for ids in new]
    costs = score(base.model, programs, encoding.start)
    her_costs = score(human, [goal[1:] + ids for goal, ids in zip(knows, programs)],
                      encoding.start)  # which is the first token of each goal
    return [{"statement": problem.statement, "program": encoding.decode(ids), "ended": done,
             "nll": nll.tolist(), "her_nll": her_nll[len(her_nll) - len(ids):].tolist()}
            for problem, ids, done, nll, her_nll in zip(
                problems, programs, ended, costs, her_costs) if ids]


def fine_tune(cfg, base, examples, name, optimizers=adamw, gradient=sft_gradient):
    """The Checkpoint of a copy of pi_hat, fine-tuned on the examples of `sft_example`."""
    model = copy.deepcopy(base.model).float()  # in bfloat16 most steps would be rounded away
    model.name = None  # no longer that of pi_hat
    list(bar(train(model, examples, cfg.sft_batch, optimizers(model, cfg.sft_lr),
                   python_generator(cfg, name), gradient),
             name, math.ceil(len(examples) / cfg.sft_batch)))
    return dataclasses.replace(base, model=model)


# ------------------------------------------------------------------- the experiment


class Lab:
    """What the rows of the table share: parts kept in cfg.out until their arguments or code change.

    To try an idea: lab = Lab(Config()), then lab.play("Mine", lab.train("Mine", my_rule)).
    base: pi_hat, from which the assistants start. human: pi_H. hers: the Checkpoint of her model,
    pre-trained with `human_cfg` if that is given. written: what `write_programs` returned, and
    programs: (token ids, costs in bits, whether she ended it) of each program in it.
    """

    fine_tuning = ()  # more arguments for `fine_tune`

    def __init__(self, cfg, human_cfg=None):
        self.cfg, self.device = cfg, cli.pick_device(cfg.device)
        self.kept, self.contest = Cache(cfg.out, self.device), miniature.new_contest(cfg)
        self.base = self.hers = self.language_model("base", cfg)
        if human_cfg:
            self.hers = self.language_model("human", human_cfg, self.base.encoding)
        self.written = self.write("programs", self.contest.learn)
        self.programs = [(self.base.encoding.encode_ordinary(row["program"]), np.array(row["nll"]),
                          row["ended"]) for row in self.written]
        self.human = self.human_with(cfg.care)

    def language_model(self, name, cfg, encoding=None):
        """The Checkpoint of a GPT pre-trained on the contest, with a new tokenizer or this one."""
        texts = miniature.contest_texts(cfg, self.contest.learn)
        encoding = encoding or miniature.contest_tokenizer(cfg, texts)
        settings = only(cfg, "seed", "width", "layers", "pretrain_batch", "pretrain_lr")
        return self.kept(name, miniature.pretrain, train, settings, encoding,
                         miniature.contest_documents(encoding, texts), device=self.device)

    def write(self, name, problems):
        """What she writes alone for these problems, as in `write_programs`."""
        return self.kept(name, write_programs, only(self.cfg, "seed", "temperature", "top_p"),
                         self.base, self.hers.model, problems)

    def verdicts(self):
        """Whether each program in `written` passes the tests of its problem: a list of bool."""
        return self.kept("verdicts", miniature.verdicts, self.written, self.contest.learn)

    def human_with(self, care):
        """A simhuman.Human who would reject this share of her own training programs."""
        limits = self.kept(f"limits of care {care:g}", simhuman.typical_limits,
                           [row["her_nll"] for row in self.written], care, self.cfg.max_suggestion)
        return Human(self.hers.model, functools.partial(simhuman.typical, limits=limits),
                     self.cfg.turn_tokens, self.cfg.temperature, self.cfg.top_p,
                     self.cfg.attention)

    def completions(self, rule, programs=None):
        """(completions to learn from, held out): one a program (4.1), the last fifth held out."""
        # All rules get the same seeds, and so the same states.
        rngs = (numpy_generator(self.cfg, purpose) for purpose in ("states", "lengths"))
        completions = choose_completions(programs or self.programs, rule, *rngs)
        n_train = len(completions) - len(completions) // 5
        return completions[:n_train], completions[n_train:]

    def train(self, name, rule, programs=None):
        """Section 4.2: the simhuman.Assistant that has learned the completions of a rule.

        Its suggestions are capped at the longest of them: nothing in the text marks where a
        suggestion began, so a model cannot count to N.
        """
        learned, _ = self.completions(rule, programs)
        examples = [sft_example(self.base.encoding, *completion) for completion in learned]
        checkpoint = self.kept(name, fine_tune, only(self.cfg, "seed", "sft_batch", "sft_lr"),
                               self.base, examples, name, *self.fine_tuning)
        return new_assistant(self.cfg, checkpoint, max(len(text) for _, text, _ in learned))

    def stopping(self, name, rule, assistant, programs=None):
        """What `report.check_stopping` finds on the last fifth of the completions."""
        _, held_out = self.completions(rule, programs)
        uncapped = dataclasses.replace(assistant, max_tokens=self.cfg.max_suggestion)
        seed = cli.derived_seed(self.cfg.seed, f"stopping of {name}")
        return self.kept(f"stopping of {name}", report.check_stopping, name, uncapped,
                         self.base.encoding, held_out, seed)

    def play(self, name, assistant, human=None, problems=None, rounds=None):
        """Section 3: the judged episodes of a row, one for each problem (default: held out).

        assistant: a simhuman.Assistant, or None if she is alone. human: default self.human.
        """
        human = human or self.human
        if not assistant:
            human = dataclasses.replace(human, accepts=None, attention=1.0)  # neither matters
        stage = f"row {name}" + f", reads {human.attention:g}" * (human.attention < 1)
        episodes = self.kept(stage, miniature.contest_game, only(self.cfg, "seed"), name,
                             problems or self.contest.held_out, self.base.encoding, human,
                             assistant, rounds or self.cfg.rounds)
        return list(map(Episode.from_dict, episodes))


def new_assistant(cfg, checkpoint, max_tokens=math.inf, **options):
    """A simhuman.Assistant with this checkpoint and the run's settings."""
    own, hers = cfg.assistant_temperature, cfg.temperature
    return Assistant(checkpoint.model, min(max_tokens, cfg.max_suggestion), **options,
                     temperature=hers if own is None else own, top_p=cfg.top_p)


def rows_of_the_table(cfg, base, trained):
    """{name: Assistant, or None if she is alone}; trained: {name: Assistant}."""
    row, K = functools.partial(new_assistant, cfg, base), cfg.turn_tokens
    return {"Human alone": None, "Base": row(), f"Base-{K}": row(K), f"Base-{2 * K}": row(2 * K),
            f"Base stopped at {cfg.eta:g} bits": row(max_cost=cfg.eta), **trained,
            report.CEILING: row(knows_goal=True)}


def run(cfg):
    """The paper's experiment in miniature, from nothing to the tables. Returns the results."""
    begin, rules = time.time(), completion_rules(cfg)
    miniature.announce(cfg, rules, empower_lengths)

    # Section 5.1: problems; one language model, which is pi_H, pi_hat and Base; her programs.
    lab = Lab(cfg)
    ids, nll, _ = lab.programs[0]
    report.show_program(lab.base.encoding, ids, empower_lengths(nll, cfg.eta))

    # Section 4: train the assistants, and check how well they have learned to stop.
    trained, stopping = {}, []
    for name, rule in rules.items():
        trained[name] = lab.train(name, rule)
        stopping.append(lab.stopping(name, rule, trained[name]))

    # Section 3: the game, on problems whose meaning was never trained on.
    unlimited = UNLIMITED_TOKENS // cfg.turn_tokens + 1
    episodes = {report.UNLIMITED: lab.play("Human alone", None, rounds=unlimited)}
    rows = rows_of_the_table(cfg, lab.base, trained)
    for name, assistant in rows.items():
        episodes[name] = lab.play(name, assistant)

    # Some of them again, for a human who accepts some suggestions without reading them.
    hasty = dataclasses.replace(lab.human, attention=cfg.attention_low)
    unread = {name: lab.play(name, rows[name], hasty) if rows[name] else episodes[name]
              for name in report.in_short(cfg) if name in rows}

    # Section 5.2: the tables, and whether the paper's claims hold.
    return report.conclude(lab, begin, trained, stopping, episodes, unread)


def main(argv=None):
    """The command line: this experiment, or a command from another folder."""
    with cli.plain_errors("empower.py"):
        command, cfg = cli.parse(argv, Config, run)
        command(cfg)


if __name__ == "__main__":
    import empower  # run as a script this file is __main__, but realcode/ imports empower
    sys.exit(empower.main())
