"""Training LLM agents to empower humans (arXiv 2510.13709): write what is obvious, then stop.

The method needs nothing but programs that people wrote. An ordinary language model says how
predictable each next token is. The assistant is fine-tuned to write exactly the predictable part
and then a stop token, so that the human's next key is one that matters.

    l_{1:N}   a program, N tokens          pi_hat  the scorer: the base model, without the goal
    l_{1:n}   its prefix, the state        pi_R    an assistant: pi_hat, fine-tuned
    eta       the threshold, in bits       pi_H    the human: the same model, reading the goal too
    i*        how many tokens are obvious  B, T, V batch, positions, vocabulary

    python empower.py            the whole experiment, a few minutes on a laptop CPU
    python empower.py --help     every setting with its unit and its place in the paper

The method is in four files: this one, data.py (tokens, documents, batches), model.py (the GPT) and
simhuman.py (the human, the game, the metrics). support/ is machinery: skip it at first.
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
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

import data
import simhuman
from model import GPT, KVCache, sample, token_nll
from simhuman import Assistant, Episode, Human
from support import cli, contest, judge, parallel, report
from support.cache import Cache, as_inputs, fingerprint, plain_fields
from support.cli import UserError, flag, numpy_generator, python_generator, torch_generator, values
from support.miniature import (contest_documents, contest_game, contest_texts, contest_tokenizer,
                               goals, new_model)
from support.optim import adamw, muon_and_adamw

# ------------------------------------------------------------------- Algorithm 1 (Section 4.2)


def empower_length(nll, eta):
    """i* of Algorithm 1 and Eq. 2: max { i : -log2 pi_hat(l_{n+1:n+i} | l_{1:n}) <= eta }.

    That is how many tokens can be written before they cost more than eta bits. A sum equal to eta
    is kept, as in Algorithm 1; Eq. 2 is strict.
    nll (N - n,): the cost in bits of each token that follows the prefix, under pi_hat.
    Example: costs [0.25, 0.5, 2, 0] with eta = 1 sum to [0.25, 0.75, 2.75, 2.75]: i* = 2.
    """
    return int((np.cumsum(nll, dtype=float) <= eta).sum())  # <- this line is the paper


# Why cheap text leaves the human no choice (Section 4.3): her empowerment in a state is the
# information that her next token carries about the future text l+, at most the entropy of that
# token, which the cost of the token she wrote estimates from one sample:
#     I(l^H_{n+1}; l+ | l_{1:n})  <=  H(l^H_{n+1} | l_{1:n})  ~  -log2 pi_hat(l_{n+1} | l_{1:n})
# Text that costs little decides little, so the assistant may write it. figures/bound.py measures
# both steps.


def empower_lengths(nll, eta):
    """i* for every state n = 0 .. N-1 of a program at once: finite costs (N,) -> lengths (N,).

    i tokens from state n cost cum[n + i] - cum[n], and cum never falls: a binary search.
    The sums are rounded in another way than those of `empower_length`, so where one of them equals
    eta, the lengths may differ by that token and the free ones after it.
    Example: costs [0.25, 0.5, 2, 0] with eta = 1: [2, 1, 0, 1].
    """
    cum = np.concatenate([[0.0], np.cumsum(nll, dtype=float)])                   # (N + 1,)
    return np.searchsorted(cum, cum[:-1] + eta, side="right") - 1 - np.arange(len(nll))


def left_to_human(nll, eta):
    """Positions (a list of int) of the tokens of a whole program that are left to the human.

    The assistant writes as far as Algorithm 1 allows, she types the next token, and so on in turns
    until one of them reaches the end.
    Example: costs [3, 0, 0.2, 0.2, 2] with eta = 0.32: [0, 3, 4].
    """
    lengths, typed, n = empower_lengths(nll, eta), [], 0
    while n < len(nll) and n + lengths[n] < len(nll):
        typed.append(int(n + lengths[n]))
        n = typed[-1] + 1
    return typed


# ------------------------------------------------------------------- completion rules (5.1)
#
# A rule says how many tokens an assistant learns to write: rule(costs after the prefix, rng) ->
# length, with a numpy Generator. The length may exceed the number of costs; callers truncate.
# In training, Empower and its baselines differ only in the rule, and in how batches are shuffled.


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
    """{name: rule}, one for each trained assistant. Add yours here: it gets its own row.

    As in the paper, SFT-N learns as many tokens as the human types in a turn, or twice as many.
    """
    K = cfg.turn_tokens
    return {f"SFT-{K}": sft(K), f"SFT-{2 * K}": sft(2 * K), "SFT-RAND": sft_rand(3 * K),
            f"Empower ({cfg.eta:g})": empower(cfg.eta),
            f"Empower ({cfg.eta_wide:g})": empower(cfg.eta_wide)}


# ------------------------------------------------------------------- scoring (4.1)


@torch.no_grad()
def score(model, programs, start, batch_tokens=8192, cost=token_nll):
    """Cost in bits of every token of every program: a list of arrays (N,).

    One forward pass serves all states, since a token's cost does not depend on the state that is
    drawn. The model reads the token `start`, which opens a document, and the program, nothing else.
    `cost` is a function of (logits, ids). ValueError: a program is longer than the model's
    context, or a cost is not a number.
    """
    limit = model.config.max_position_embeddings
    longest = max(map(len, programs), default=0)
    if longest > limit:
        raise ValueError(f"a program of {longest} tokens is longer than the model's {limit}")
    costs = [None] * len(programs)
    with tqdm(total=sum(map(len, programs)), desc="score", unit="token", unit_scale=True,
              leave=False, disable=None) as bar:
        for some in data.batches_by_length([len(program) for program in programs], batch_tokens):
            ids, _ = data.collate([([start, *programs[i]], 0) for i in some], limit + 1)
            nll = document_nll(model, ids.to(model.device), cost).cpu().numpy()  # (B, T-1)
            for i, row in zip(some, nll):
                costs[i] = row[:len(programs[i])]
            if not np.isfinite(nll).all():
                raise UserError("the model's costs are not numbers: " + (
                    "it is damaged, or was trained at too large a rate, so give another one"
                    if model.dtype == torch.float32 else
                    f"{str(model.dtype).removeprefix('torch.')} may be too narrow for it, so give "
                    "--dtype float32"))
            bar.update(sum(len(programs[i]) for i in some))
    return costs


def document_nll(model, ids, cost=token_nll):
    """Cost in bits of ids[:, 1:], each given all tokens before it: (B, T) -> (B, T-1).

    The head takes a slice of positions at a time: with a large vocabulary, all logits at once
    would not fit into memory.
    """
    hidden, targets = model.hidden(ids[:, :-1]), ids[:, 1:]                      # (B, T-1, C)
    size = max(1, 2**26 // (len(ids) * model.config.vocab_size))
    return torch.cat([cost(model.lm_head(h), t) for h, t in
                      zip(hidden.split(size, 1), targets.split(size, 1))], 1)


def choose_completions(programs, rule, states_rng, lengths_rng):
    """[(prefix, completion, whether it ends with a stop)], at one uniform state of each program.

    programs: [(token ids, costs in bits, whether the text ends there)]. A completion that reaches
    the end of a piece of a longer text was cut off there, so it does not end with a stop. Both rngs
    are NumPy generators.
    """
    states = data.draw_states(states_rng, [len(ids) for ids, *_ in programs])
    completions = []
    for n, (ids, nll, ends) in zip(states, programs):
        completion = ids[n:n + rule(nll[n:], lengths_rng)]
        completions.append((ids[:n], completion, ends or n + len(completion) < len(ids)))
    return completions


# ------------------------------------------------------------------- supervised fine-tuning (4.2)


def sft_example(encoding, prefix, completion, stop=True):
    """(token ids, where the loss starts): start, prefix | completion, stop."""
    ids = [encoding.start, *prefix, *completion] + [encoding.stop] * stop
    return ids, 1 + len(prefix)


def sft_loss(model, ids, labels):
    """The sum of -log p(label), in nats, over all labels but -100: ids, labels (B, T).

    The head is applied only where there is a label, since completions are short and vocabularies
    large. On CUDA the forward pass is in bfloat16.
    """
    ids, targets = ids[:, :-1].to(model.device), labels[:, 1:].to(model.device)  # (B, T-1)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        logits = model.lm_head(model.hidden(ids)[targets >= 0])                  # (labels, V)
    return F.cross_entropy(logits.float(), targets[targets >= 0], reduction="sum")


def learning_rate(update, updates):
    """The factor of the learning rate: up over the first 2% of updates, down over the last 60%."""
    return min(1, (update + 1) / (0.02 * updates), (updates - update) / (0.6 * updates))


def train(model, examples, batch_size, optimizers, rng, label, micro_batch=None, clip=None,
          progress=None, collate=data.collate, loss_of=None):
    """One pass over `examples`, (token ids, start) each, with loss only on ids[start:].

    Pre-training and fine-tuning share this loop. A batch goes through the model `micro_batch`
    examples at a time; gradients are clipped to the norm `clip`. optimizers: a list of them. rng:
    a random.Random, which orders the examples. label: of the bar. progress: a cache.Progress to
    resume from. collate, loss_of: for examples of another kind (default: `sft_loss`). Returns the
    mean loss of each update, in nats per token.
    """
    batches = data.make_batches(examples, batch_size, rng)
    schedules = [LambdaLR(optimizer, functools.partial(learning_rate, updates=len(batches)))
                 for optimizer in optimizers]
    parts = (model, *optimizers, *schedules)
    losses = progress.load(*parts) if progress else []
    limit = model.config.max_position_embeddings + 1  # the last token is only a label
    begin, tokens = time.time(), 0
    with tqdm(total=len(batches), initial=len(losses), desc=label, unit="update", leave=False,
              disable=None) as bar:
        for batch in batches[len(losses):]:
            size = min(micro_batch or len(batch), parallel.share(len(batch)))
            micro = [collate(batch[i:i + size], limit) for i in range(0, len(batch), size)]
            count = sum(int((labels[:, 1:] >= 0).sum()) for _, labels, *_ in micro)
            losses.append(0.0)
            for tensors in parallel.mine(micro):
                loss = (loss_of or sft_loss)(model, *tensors) / count
                (loss * parallel.size()).backward()  # gradients are averaged over processes
                losses[-1] += loss.item()
            losses[-1] = parallel.total(losses[-1])
            if not math.isfinite(losses[-1]):
                raise UserError(f"{label}: the loss of update {len(losses)} is not finite: give a "
                                "smaller learning rate")
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            for part in parts[1:]:
                part.step()
            model.zero_grad()
            tokens += sum(len(ids) for ids, *_ in batch)
            bar.set_postfix_str(f"loss {np.mean(losses[-50:]):.3f}, "
                                f"{tokens / (time.time() - begin):,.0f} tokens/s", refresh=False)
            bar.update()
            if progress:
                progress.save(losses, *parts, last=len(losses) == len(batches))
    return losses


# ------------------------------------------------------------------- settings

MINUTES = 7  # duration of the default run on 2 CPU cores
UNLIMITED_TOKENS = 400  # a cap on what she writes without a round limit: six programs' length
# Settings on which pre-training depends, and those on which everything sampled depends.
PRETRAINING = ("seed", "vocab_size", "width", "layers", "pretrain_batch", "pretrain_lr")
SAMPLING = ("seed", "temperature", "top_p")


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
    width: int = flag(128, "hidden size of the model", 32)
    layers: int = flag(3, "layers of the model", 1)
    pretrain_steps: int = flag(1400, "updates of pre-training", 1)
    pretrain_batch: int = flag(16, "documents per update", 1)
    pretrain_lr: float = flag(0.02, "Muon's learning rate; AdamW's is a tenth", 0)
    # the human and the game (5.1)
    care: float = flag(0.05, "her care: the share of her own text that she would reject (0.05, the "
                             "customary rate of false rejections); larger is more careful", 0, 1)
    turn_tokens: int = flag(4, "K_H, most tokens that she types in a round (5.1: 10)", 0, 1000)
    rounds: int = flag(19, "most rounds of a game; K_H x rounds is 1.25 programs (in 5.1 too, "
                           "if its programs have 400 tokens, which we assume)", 1)
    max_suggestion: int = flag(100, "cap on every suggestion, tokens", 0, 2000)  # half the context
    temperature: float = flag(1.0, "of sampling, for human and assistants (5.1: defaults)", 0)
    top_p: float = flag(1.0, "share of the probability that sampling keeps", 0, 1)
    # the discounted pass rate (5.1)
    gamma: float = flag(0.9935, "discount: 0.999 ** (400 / tokens of a program), which discounts "
                                "a program as in 5.1 if its programs have 400 tokens", 0, 1)
    alpha: float = flag(0.1, "weight of a token read in DPR (5.1)", 0)
    beta: float = flag(0.5, "weight of a token written in DPR (5.1)", 0)

    def __post_init__(self):
        if self.width % 32:
            raise UserError(f"--width is {self.width}: give a multiple of 32, the size of a head")
        cli.check_ranges(self)


# ------------------------------------------------------------------- the roles (5.1)
#
# These functions return what they make; none of them touches a folder. support/miniature.py has the
# model's shape, the texts that it reads, and the game on the problems of the contest.


def pretrain(cfg, encoding, documents, device):
    """A new GPT, trained on the documents (token ids each) for one epoch."""
    model = new_model(cfg, encoding.n_vocab).to(device)
    losses = train(model, [(ids, 1) for ids in documents], cfg.pretrain_batch,
                   muon_and_adamw(model, cfg.pretrain_lr), python_generator(cfg, "batches"),
                   "pre-train")
    print(f"  {sum(map(len, documents)):,} tokens seen; loss from {losses[0]:.2f} to "
          f"{np.mean(losses[-50:]):.3f} nats per token")
    return model


def write_programs(cfg, base, human, problems):
    """Her one attempt at each problem, unfiltered: [{statement, program, ended, nll, her_nll}].

    human: a model that reads the statement. ended: whether she ended the program herself. nll: the
    cost in bits of each token under pi_hat, which does not read the statement; her_nll: under pi_H,
    which does. Empty programs are left out.
    """
    encoding, knows = base.encoding, goals(base.encoding, problems)
    generator, programs, ended = torch_generator(cfg, "programs", human.device), [], []
    for k in tqdm(range(0, len(problems), 512), "human writes", unit="batch", leave=False,
                  disable=None):
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


def fine_tune(cfg, base, examples, rng, label, optimizers=adamw, **options):
    """Section 4.2: a copy of pi_hat in float32, fine-tuned on the examples of `sft_example`.

    It stays in float32: most steps would be lost if it were rounded to bfloat16.
    """
    model = copy.deepcopy(base.model).float()
    train(model, examples, cfg.sft_batch, optimizers(model, cfg.sft_lr), rng, label, **options)
    return model


# ------------------------------------------------------------------- the experiment


class Lab:
    """All that the rows of the table share. Each part is made once and kept in cfg.out.

    contest: the problems. base: pi_hat, from which the assistants start. human: pi_H; hers: the
    Checkpoint of her language model. written: what `write_programs` returned.
    programs: (token ids, costs in bits, whether she ended it) of each program in `written`.
    human_cfg: settings for a model of her own; without them she is the base model.
    """

    fine_tuning = {}  # options of `fine_tune`

    def __init__(self, cfg, human_cfg=None):
        self.cfg, self.device = cfg, cli.pick_device(cfg.device)
        self.cache = Cache(cfg.out, self.device)
        cli.checked(judge.check_judge)
        self.contest = cli.checked(contest.make_contest, python_generator(cfg, "contest"),
                                   cfg.train_problems, cfg.dev_problems, cfg.held_out_problems)
        self.first_statement = self.contest.held_out[0].statement
        self.base = self.hers = self.language_model("base", cfg)
        if human_cfg:
            self.hers = self.language_model("human", human_cfg, self.base)
        self.written = self.write("programs", self.contest.learn)
        self.programs = [(self.base.encoding.encode_ordinary(row["program"]), np.array(row["nll"]),
                          row["ended"]) for row in self.written]
        self.human = self.human_with(cfg.care)

    def write(self, name, problems):
        """What she writes alone for these problems, as in `write_programs`."""
        inputs = {"base": self.base.name, "human": self.hers.name, "statements": fingerprint(
            [problem.statement for problem in problems]), **values(self.cfg, *SAMPLING)}
        return self.cache.data(name, inputs, lambda: write_programs(
            self.cfg, self.base, self.hers.model, problems), code=(GPT,))

    def human_with(self, care):
        """A simhuman.Human who would reject this share of her text, the programs to learn from."""
        cfg, costs = self.cfg, [row["her_nll"] for row in self.written]
        limits = self.cache.data(
            f"limits of care {care:g}", {"costs": fingerprint(costs), "care": care,
                                         **values(cfg, "max_suggestion")},
            lambda: simhuman.typical_limits(costs, care, cfg.max_suggestion))
        return Human(self.hers.model, functools.partial(simhuman.typical, limits=limits),
                     cfg.turn_tokens, cfg.temperature, cfg.top_p)

    def language_model(self, name, cfg, other=None):
        """A GPT pre-trained on the contest, with the tokenizer of a Checkpoint `other` if given."""
        texts = contest_texts(cfg, self.contest.learn)

        def make():
            encoding = other.encoding if other else contest_tokenizer(cfg, texts)
            documents = contest_documents(encoding, texts)
            return pretrain(cfg, encoding, documents, self.device), encoding

        inputs = {"texts": fingerprint(texts), "other": other and other.name,
                  **values(cfg, "pretrain_steps", *PRETRAINING)}
        return self.cache.model(name, inputs, make, code=(GPT,))

    def completions(self, rule, programs=None):
        """The completions to learn from, one of each program (4.1), and the test split (5.1).

        The test split is the last fifth. Its problems are not those that are played.
        """
        cfg = self.cfg  # the seeds are the same for every rule, so the states are too
        completions = choose_completions(programs or self.programs, rule,
                                         numpy_generator(cfg, "states"),
                                         numpy_generator(cfg, "lengths"))
        n_train = len(completions) - len(completions) // 5
        return completions[:n_train], completions[n_train:]

    def train(self, name, rule, programs=None):
        """Section 4.2: the simhuman.Assistant that has learned the completions of a rule.

        It never writes more than the longest of them: a text does not show where a suggestion
        began, so a model cannot count to N.
        """
        cfg, (learned, _) = self.cfg, self.completions(rule, programs)
        examples = [sft_example(self.base.encoding, *completion) for completion in learned]
        checkpoint = self.cache.model(
            name, {"base": self.base.name, "examples": fingerprint(examples), "name": name,
                   "options": as_inputs(self.fine_tuning),
                   **values(cfg, "seed", "sft_batch", "sft_lr")},
            lambda: (fine_tune(cfg, self.base, examples, python_generator(cfg, name), name,
                               **self.fine_tuning), self.base),
            code=(GPT, *filter(callable, self.fine_tuning.values())))
        longest = max(len(completion) for _, completion, _ in learned)
        return new_assistant(cfg, checkpoint, max_tokens=longest)

    def stopping(self, name, rule, assistant, programs=None):
        """What `report.check_stopping` finds on the test split."""
        cfg, (_, held_out) = self.cfg, self.completions(rule, programs)
        uncapped = dataclasses.replace(assistant, max_tokens=cfg.max_suggestion)
        inputs = {"assistant": plain_fields(uncapped), "held_out": fingerprint(held_out),
                  "base": self.base.name, "name": name, **values(cfg, "seed")}
        return self.cache.data(
            f"stopping of {name}", inputs, lambda: report.check_stopping(
                name, uncapped, self.base.encoding, held_out,
                torch_generator(cfg, f"stopping of {name}", self.device)),
            code=(type(assistant), GPT))

    def play(self, name, assistant, human=None, problems=None, rounds=None):
        """Section 3: the judged episodes of a row, one for each problem (default: held out).

        assistant: a simhuman.Assistant, or None if she is alone. human: default self.human.
        """
        cfg, human = self.cfg, human or self.human
        problems, rounds = problems or self.contest.held_out, rounds or cfg.rounds
        inputs = {"problems": fingerprint(list(map(dataclasses.astuple, problems))),
                  "human": plain_fields(human), "assistant": assistant and plain_fields(assistant),
                  "rounds": rounds, "name": name, "seed": cfg.seed}
        code = [type(human), GPT, judge.HELPER]
        if assistant:
            code += [human.accepts, type(assistant)]
        else:
            del inputs["human"]["accepts"]  # nothing is suggested, so her care does not matter
        episodes = self.cache.data(f"row {name}", inputs, lambda: contest_game(
            problems, self.base.encoding, human, assistant, rounds,
            torch_generator(cfg, f"game of {name}", self.device), name), code)
        return list(map(Episode.from_dict, episodes))


def new_assistant(cfg, checkpoint, max_tokens=math.inf, **options):
    """A simhuman.Assistant with this checkpoint and the run's settings."""
    return Assistant(checkpoint.model, min(max_tokens, cfg.max_suggestion), **options,
                     temperature=cfg.temperature, top_p=cfg.top_p)


def rows_of_the_table(cfg, base, trained):
    """{name: Assistant, or None if she is alone}; trained: {name: Assistant}."""
    row, K = functools.partial(new_assistant, cfg, base), cfg.turn_tokens
    return {"Human alone": None, "Base": row(), f"Base-{K}": row(max_tokens=K),
            f"Base-{2 * K}": row(max_tokens=2 * K),
            f"Base stopped at {cfg.eta:g} bits": row(max_cost=cfg.eta), **trained,
            report.CEILING: row(knows_goal=True)}


def run(cfg):
    """The paper's experiment in miniature, from nothing to the tables. Returns the results."""
    begin, rules = time.time(), completion_rules(cfg)
    print(f"Pre-train a GPT, let the human write {cfg.train_problems} programs, fine-tune "
          f"{len(rules)} assistants\nand play {cfg.held_out_problems} unseen problems with each: "
          f"about {MINUTES} minutes on 2 CPU cores at the default "
          "settings,\nless if stages are reused.")
    cli.describe(cfg, new_model(cfg, cfg.vocab_size), cli.pick_device(cfg.device))

    # Section 5.1: problems; one language model, which is pi_H, pi_hat and Base; her programs.
    lab = Lab(cfg)
    ids, nll, _ = lab.programs[0]
    picture = report.marked(report.token_texts(lab.base.encoding, ids), left_to_human(nll, cfg.eta))
    print("\nThe human's first program; in ‹angles›, what is not obvious without the problem "
          f"statement:\n\n{picture}")

    # Section 4: train the assistants, and check how well they have learned to stop.
    trained, stopping = {}, []
    for name, rule in rules.items():
        trained[name] = lab.train(name, rule)
        stopping.append(lab.stopping(name, rule, trained[name]))

    # Section 3: the game, on problems whose meaning was never trained on.
    unlimited = UNLIMITED_TOKENS // cfg.turn_tokens + 1
    episodes = {report.UNLIMITED: lab.play("Human alone", None, rounds=unlimited)}
    episodes |= {name: lab.play(name, assistant)
                 for name, assistant in rows_of_the_table(cfg, lab.base, trained).items()}

    # Section 5.2: the tables, and whether the paper's claims hold.
    return report.conclude(lab, begin, trained, stopping, episodes)


COMMANDS = {"show": "realcode.show", "suggest": "realcode.suggest", "replay": "realcode.replay",
            "finetune": "realcode.finetune", "convert": "realcode.convert",
            "collect": "section5.collect", "play": "section5.play", "page": "page.server"}


def main(argv=None):
    """The command line. A command with a name is imported only when it is asked for."""
    with cli.plain_errors("empower.py"):
        command, cfg = cli.parse(argv, Config, run, COMMANDS)
        command(cfg)


if __name__ == "__main__":
    import empower  # this file once more, under the name by which realcode/ knows it
    sys.exit(empower.main())
