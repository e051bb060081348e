"""Training LLM agents to empower humans (arXiv 2510.13709): write what is obvious, then stop.

The method needs nothing but programs that people wrote. A language model that has not been trained
for it says how predictable each next token is; the assistant is fine-tuned to write exactly the
predictable part and then a stop token, so that the human's next key is one that matters.

    l_{1:N}   a program, N tokens          pi_hat  the scorer: the untrained model, without the goal
    l_{1:n}   its prefix, the state        pi_R    an assistant: pi_hat, fine-tuned
    eta       the threshold, in bits       pi_H    the human: the same model, reading the goal too
    i*        tokens that are obvious      B, T, V batch, positions, vocabulary

Run it:  python empower.py            the whole experiment, a few minutes on a laptop CPU
         python empower.py --help     every setting with its unit and its place in the paper
"""

import argparse
import codecs
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import os
import pickle
import platform
import random
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import data
import simhuman
from checkpoint import GPTConfig, tokenizer_files, write_text
from contest import Contest, draw_style, make_contest, write_program
from model import GPT, KVCache, Muon, extend, sample
from simhuman import Assistant, Human

# ------------------------------------------------------------------- the paper (Section 4.2)


def token_nll(logits, ids):
    """The cost of each token in bits, -log2 p(id): logits (..., T, V), ids (..., T) -> (..., T).

    Example: logits [0, 0] give each of two tokens probability 1/2, which costs 1 bit.
    """
    nll = F.cross_entropy(logits.flatten(0, -2).float(), ids.flatten(), reduction="none")
    return nll.view(ids.shape) / math.log(2)


def token_entropy(logits, ids=None):
    """H(l_{n+1} | l_{1:n}) in bits, which the cost of one token estimates (Section 4.3).

    The mean of `token_nll` over all ids that could stand there, so it does not depend on `ids`:
    logits (..., T, V) -> (..., T). Example: logits [0, 0, 0, 0] of a next token have 2 bits.
    """
    return torch.special.entr(logits.float().softmax(-1)).sum(-1) / math.log(2)


def empower_length(nll, eta):
    """i* of Algorithm 1: how many tokens can be written before they cost more than eta bits.

    nll (N - n,): the cost in bits of each token that follows the prefix, under pi_hat.
    Example: costs [0.25, 0.5, 2, 0] with eta = 1 sum to [0.25, 0.75, 2.75, 2.75]: i* = 2.
    """
    return int((np.cumsum(nll, dtype=float) <= eta).sum())  # <- this line is the paper


def empower_lengths(nll, eta):
    """i* for every state n = 0 .. N-1 of a program at once: finite costs (N,) -> lengths (N,).

    What is written from state n costs cum[n + i] - cum[n], and cum never falls: a binary search.
    Example: costs [0.25, 0.5, 2, 0] with eta = 1: [2, 1, 0, 1].
    """
    cum = np.concatenate([[0.0], np.cumsum(nll, dtype=float)])                   # (N + 1,)
    return np.searchsorted(cum, cum[:-1] + eta, side="right") - 1 - np.arange(len(nll))


def completion_rule(name, eta):
    """How many tokens an assistant learns to write: rule(costs after the prefix, rng) -> length.

    "empower" for `empower_length`; "sft-N" for N tokens, N at least 1; "sft-rand" for 1 to 30 at
    random by rng, a numpy Generator. A length may be larger than the number of costs: who uses it
    cuts off. The rule is all that tells Empower from its baselines; everything below is shared.
    """
    if name == "empower":
        return lambda nll, rng: empower_length(nll, eta)
    if name == "sft-rand":
        return lambda nll, rng: int(rng.integers(1, 31))
    if not re.fullmatch(r"sft-[1-9]\d*", name):
        raise UserError(f"--rule is {name!r}: choose empower, sft-rand or sft-N, as in sft-10")
    return lambda nll, rng: int(name.removeprefix("sft-"))


def completion_rules(cfg):
    """{name: rule} of the assistants in the table (Section 5.1)."""
    return {"SFT-10": completion_rule("sft-10", None), "SFT-20": completion_rule("sft-20", None),
            "SFT-RAND": completion_rule("sft-rand", None),
            **{f"Empower ({eta:g})": completion_rule("empower", eta)
               for eta in (cfg.eta, cfg.eta_wide)}}


@torch.no_grad()
def future_information(model, prefix, stop, steps, samples, generator, least=1e-3):
    """Section 4.3: I(next token; the k tokens behind it | prefix) in bits, k = 1..steps, and H.

    The effective empowerment of a state for a future of k tokens, without the next token itself:
    with it, the information is its whole entropy. A Monte-Carlo estimate: `samples` futures are
    drawn from the model; Bayes' rule gives the exact posterior of the next token, given each, and
    the estimate is the mean divergence of posterior from prior. It has no bias for what it counts:
    the next tokens with a probability of at least `least`, renormalised. The others are left out
    of the information and of the entropy alike, so that the two compare. A text that ended with
    the token `stop` stays ended. Returns (information (steps,), entropy of the tokens counted).

    Example: next is a or b, each in half of the cases; c follows a, and b is followed by c or d,
    each in half of the cases. I = H(3/4, 1/4) - 1/2 = 0.311 bits of 1, for every k.
    """
    cache = KVCache(model, 1)
    p = extend(model, cache, [prefix])[0, -1, :model.writable].float().softmax(-1)
    candidates = (p >= least).nonzero()[:, 0]                                    # (X,)
    p = p[candidates] / p[candidates].sum()
    drawn = torch.multinomial(p, samples, replacement=True, generator=generator)  # (M,)
    beginnings = [[*prefix, int(x)] for x in candidates]
    cache.keep([0] * samples)
    futures, stopped = sample(model, cache, [beginnings[i] for i in drawn], steps, stop,
                              generator=generator)
    futures = [future + [stop] * ended for future, ended in zip(futures, stopped)]

    # The cost of each future behind each candidate, whichever it was drawn behind.
    cache.keep([0] * (samples * len(candidates)))
    cache.lengths[:] = len(prefix)
    logits = extend(model, cache, beginnings * samples,
                    [future for future in futures for _ in candidates])[:, :steps]
    ids = nn.utils.rnn.pad_sequence([torch.tensor(future, device=p.device) for future in futures
                                     for _ in candidates], batch_first=True, padding_value=-100)
    nll = torch.zeros(len(ids), steps, device=p.device)                          # (M * X, steps)
    nll[:, :ids.shape[1]] = token_nll(logits[:, :ids.shape[1]], ids.to(p.device))
    nll = nll.cumsum(1).view(samples, len(candidates), steps)                    # (M, X, steps)
    ended = candidates == stop  # a future that is no text came behind the stop token, and only it
    nll[ended[drawn][:, None] != ended] = math.inf
    joint = p.log2()[:, None] - nll                                              # (M, X, steps)
    posterior = (joint * math.log(2)).softmax(1)
    divergence = torch.xlogy(posterior, posterior / p[:, None]).sum(1) / math.log(2)
    return divergence.mean(0).cpu().numpy(), float(token_entropy(p.log()))


# ------------------------------------------------------------------- settings


class UserError(ValueError):
    """Something that a person typed or handed over cannot be used; says what, and the remedy."""


def setting(default, help, least=None, most=None, positional=False):
    """A field of a dataclass of settings: the line that --help shows, and its bounds if a number.

    `least` may be reached, but not where there is a `most` as well: that is a share above it.
    """
    return dataclasses.field(default=default, metadata={
        "help": help, "least": least, "most": most, "positional": positional})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every command has; the command line is derived from the fields of these classes."""

    out: str = setting("out", "folder for everything that a run makes")
    device: str = setting("auto", "auto, cpu, cuda or mps")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            least, most = field.metadata["least"], field.metadata["most"]
            if None in (value, least):
                continue
            if most is None and not least <= value < math.inf:
                raise UserError(f"{flag} is {value}: give a finite number of at least {least}")
            if most is not None and not least < value <= most:
                raise UserError(f"{flag} is {value}: give a number above {least} and at most "
                                f"{most}")


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
    """What the generated contest and real code have in common."""

    seed: int = setting(0, "feeds all randomness, by separate generators")
    eta: float = setting(0.32, "threshold of Empower, bits (Section 5.1)", 0)
    eta_wide: float = setting(4.0, "threshold of the second Empower row, bits (Section 5.3)", 0)

    vocab_size: int = setting(640, "tokens of the vocabulary at most, all 256 bytes among them",
                              257)
    width: int = setting(128, "hidden size of the model", 32)
    layers: int = setting(3, "layers of the model", 1)
    pretrain_batch: int = setting(16, "documents an update", 1)
    pretrain_lr: float = setting(0.02, "Muon's learning rate; AdamW's is a tenth", 0)

    sft_batch: int = setting(16, "examples an update of fine-tuning; larger ones learn no stop", 1)
    sft_lr: float = setting(0.01, "Muon's learning rate in fine-tuning; AdamW's is a tenth", 0)

    temperature: float = setting(1.0, "sampling of human and assistants (5.1: defaults)", 0)
    top_p: float = setting(1.0, "share of the probability that sampling keeps", 0, 1)
    max_suggestion: int = setting(100, "cap on a suggestion, tokens", 1)
    turn_tokens: int = setting(4, "K_H, most tokens that the human types in a turn (5.1: 10)", 1)

    gamma: float = setting(0.999, "discount of DPR (5.1)", 0, 1)
    alpha: float = setting(0.1, "DPR's weight of a token read (5.1)", 0)
    beta: float = setting(0.5, "DPR's weight of a token written (5.1)", 0)

    def __post_init__(self):
        super().__post_init__()
        if self.width % 32:
            raise UserError(f"--width is {self.width}: give a multiple of 32, the size of a head")


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
    """Every setting of the experiment on the generated contest."""

    train_problems: int = setting(4138, "problems to learn from, as many as the paper's (5.1)", 10)
    dev_problems: int = setting(100, "problems on which constants are chosen", 1)
    held_out_problems: int = setting(300, "problems of the results, compositions never seen", 2)
    pretrain_steps: int = setting(1400, "updates of pre-training", 1)

    rounds: int = setting(19, "most rounds a problem; K_H x rounds is 1.25 programs, as in 5.1", 1)
    judging: str = setting("skim", "how the human judges a suggestion: skim, careful or strict")
    tau: float = setting(None, "what she tolerates, bits (default: what --calibrate chose: "
                               "skim 1.1, careful 16, strict 14)", 0)
    gamma: float = setting(0.9935, "discount of DPR: 0.999 ** (400 / tokens of a program)", 0, 1)
    calibrate: bool = setting(False, "choose tau on development problems, print the choice, stop")

    def __post_init__(self):
        if self.judging not in simhuman.JUDGING:
            raise UserError(f"--judging is {self.judging!r}: choose "
                            f"{' or '.join(simhuman.JUDGING)}")
        if self.tau is None:
            object.__setattr__(self, "tau", TAU[self.judging])  # frozen for everybody else
        super().__post_init__()


# What the game and the sampling depend on; the rest of a stage's inputs it names itself.
SAMPLING = ("seed", "temperature", "top_p")
PRETRAINING = ("seed", "vocab_size", "width", "layers", "pretrain_batch", "pretrain_lr")
TAU = {"skim": 1.1, "careful": 16.0, "strict": 14.0}  # the choices of --calibrate
MINUTES = 6  # that the default run takes on 2 CPU cores
UNLIMITED_TOKENS = 400  # a human without a round limit types this much: six programs
# tau in bits that --calibrate tries, by the rule: mean, sum and maximum of a suggestion's costs
TAUS = {"skim": [0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0],
        "careful": [8, 12, 16, 20, 24, 32, 48, 64], "strict": [8, 10, 11, 12, 13, 14, 16]}


def settings(cfg, *names):
    """The values of these settings as plain data, for the inputs of a stage."""
    return {name: getattr(cfg, name) for name in names}


def derived_seed(cfg, purpose):
    """A seed of its own for each purpose, so that no stage depends on what ran before it."""
    digest = hashlib.sha256(f"{cfg.seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def fingerprint(plain):
    """Ten letters that change when anything in plain data changes, the name of what was made."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]


def torch_generator(cfg, purpose, device):
    """A torch.Generator on `device`, seeded for one purpose."""
    return torch.Generator(device).manual_seed(derived_seed(cfg, purpose))


def numpy_generator(cfg, purpose):
    """A numpy Generator, seeded for one purpose."""
    return np.random.default_rng(derived_seed(cfg, purpose))


def python_generator(cfg, purpose):
    """A random.Random, seeded for one purpose."""
    return random.Random(derived_seed(cfg, purpose))


# ------------------------------------------------------------------- the trainer


def make_batches(examples, batch_size, rng):
    """Batches of examples of like length, in random order, each example once.

    rng: a random.Random. Sorting within 50 batches at a time keeps the padding small and the
    order still nearly random.
    """
    examples = rng.sample(examples, len(examples))
    batches = []
    for k in range(0, len(examples), 50 * batch_size):
        bucket = sorted(examples[k:k + 50 * batch_size], key=lambda example: len(example[0]))
        batches += [bucket[i:i + batch_size] for i in range(0, len(bucket), batch_size)]
    rng.shuffle(batches)
    return batches


def collate(batch, limit):
    """(ids, labels), both (B, T), of examples (token ids, start): no loss before `start`.

    Example: prefix [7, 8], completion [9], stop 0 -> ids [7, 8, 9, 0], labels [-100, -100, 9, 0].
    A text longer than `limit` loses its left end, never its tail. Padding has the label -100
    whatever its id, so that the stop token is learned and the padding is not.
    """
    cut = [(ids[-limit:], max(start - max(len(ids) - limit, 0), 0)) for ids, start in batch]
    ids = torch.zeros(len(cut), max(len(row) for row, _ in cut), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for b, (row, start) in enumerate(cut):
        ids[b, :len(row)] = torch.tensor(row)
        labels[b, start:len(row)] = ids[b, start:len(row)]
    return ids, labels


def muon_and_adamw(model, lr):
    """The optimizers of a model that is pre-trained here: Muon for the weight matrices, AdamW at
    a tenth of the rate for embedding and norms. It needs a third of the tokens of AdamW alone."""
    inner = {name: name.startswith("layers.") and p.dim() == 2
             for name, p in model.named_parameters()}
    matrices, others = ([p for name, p in model.named_parameters() if inner[name] == wanted]
                        for wanted in (True, False))
    return [Muon(matrices, lr=lr), *adamw(others, lr / 10)]


def adamw(parameters, lr):
    """The optimizer of a checkpoint that was pre-trained elsewhere, most likely by this one too."""
    return [torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def backward(model, batch, micro_batch):
    """Adds the gradient of the mean loss over the labels of a batch; returns it, in nats a token.

    The batch goes through `micro_batch` examples at a time, and on CUDA in bfloat16. The head is
    applied where there is a label alone: a completion is short and a vocabulary can be large.
    """
    limit, device, total = model.config.max_position_embeddings, model.device, 0.0
    parts = [collate(batch[i:i + micro_batch], limit) for i in range(0, len(batch), micro_batch)]
    count = sum(int((labels[:, 1:] >= 0).sum()) for _, labels in parts)
    for ids, labels in parts:
        ids, targets = ids[:, :-1].to(device), labels[:, 1:].to(device)          # (B, T-1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model.lm_head(model.hidden(ids)[targets >= 0])              # (labels, V)
        loss = F.cross_entropy(logits.float(), targets[targets >= 0], reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total


def train(model, examples, batch_size, optimizers, rng, label, micro_batch=None, clip=None,
          progress=None):
    """One pass over `examples`, (token ids, start) each, with loss on ids[start:] alone.

    Pre-training and fine-tuning are this same loop. The rates of the optimizers rise over the
    first 2% of the updates and fall to zero over the last 60%; gradients longer than `clip` are
    shortened to it. `progress` (a file, seconds) is where the state is kept so often, and from
    where an interrupted pass goes on. Returns the mean loss of each update, in nats a token.
    """
    batches = make_batches(examples, batch_size, rng)
    n = len(batches)
    schedules = [torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1, (k + 1) / (0.02 * n), (n - k) / (0.6 * n)))
        for optimizer in optimizers]
    keep, seconds = progress or (None, math.inf)
    losses = load_progress(keep, model, *optimizers, *schedules) if keep and keep.exists() else []
    saved = begin = time.time()
    tokens = 0
    with tqdm(total=n, initial=len(losses), desc=label, unit="update", leave=False,
              disable=None) as bar:
        for batch in batches[len(losses):]:
            losses.append(backward(model, batch, micro_batch or batch_size))
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            for step in (*optimizers, *schedules):
                step.step()
            model.zero_grad()
            tokens += sum(len(ids) for ids, _ in batch)
            bar.set_postfix_str(f"loss {np.mean(losses[-50:]):.3f}, "
                                f"{tokens / (time.time() - begin):,.0f} tokens/s", refresh=False)
            bar.update()
            if time.time() - saved > seconds and len(losses) < n:
                save_progress(keep, losses, model, *optimizers, *schedules)
                saved = time.time()
    return losses


def save_progress(path, losses, *parts):
    """Keeps how far a pass of training has come, under a temporary name until it is whole."""
    torch.save({"losses": losses, "parts": [part.state_dict() for part in parts]}, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def load_progress(path, *parts):
    """Takes up what `save_progress` kept; returns the losses so far."""
    try:
        state = torch.load(path, map_location=parts[0].device, weights_only=True)
        for part, values in zip(parts, state["parts"], strict=True):
            part.load_state_dict(values)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and training begins "
                        "anew") from None
    return state["losses"]


def document_nll(model, ids, cost=token_nll):
    """Cost in bits of ids[:, 1:], each behind what stands before it: (B, T) -> (B, T-1).

    The head goes over slices of positions: all logits at once would not fit for a large vocabulary.
    """
    hidden, targets = model.hidden(ids[:, :-1]), ids[:, 1:]                      # (B, T-1, C)
    size = max(1, 2**26 // (len(ids) * model.config.vocab_size))
    return torch.cat([cost(model.lm_head(h), t) for h, t in
                      zip(hidden.split(size, 1), targets.split(size, 1))], 1)


@torch.no_grad()
def score(model, programs, start, batch_tokens=8192, cost=token_nll):
    """Cost in bits of every token of every program (Section 4.1): a list of arrays (N,).

    One forward pass gives the costs for all states, since a token's cost does not depend on which
    state was drawn. The model sees the code alone, behind the token `start` of a document. `cost`
    is `token_nll` or `token_entropy`. A program longer than the model's context is a ValueError.
    """
    limit = model.config.max_position_embeddings
    longest = max(map(len, programs), default=0)
    if longest > limit:
        raise ValueError(f"a program of {longest} tokens is longer than the model's {limit}")
    costs = [None] * len(programs)
    with tqdm(total=sum(map(len, programs)), desc="score", unit="token", unit_scale=True,
              leave=False, disable=None) as bar:
        for chosen in batches_by_length([len(program) for program in programs], batch_tokens):
            ids, _ = collate([([start, *programs[i]], 0) for i in chosen], limit + 1)
            nll = document_nll(model, ids.to(model.device), cost).cpu().numpy()  # (B, T-1)
            for i, row in zip(chosen, nll):
                costs[i] = row[:len(programs[i])]
            bar.update(sum(len(programs[i]) for i in chosen))
    return costs


def batches_by_length(lengths, batch_tokens):
    """Indices in batches of like length, each of at most `batch_tokens` with its padding.

    Example: lengths [3, 1, 2, 9], 6 tokens -> [1, 2], [0], [3]: at least one in each.
    """
    batches = [[]]
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return [batch for batch in batches if batch]


# ------------------------------------------------------------------- stages and files

VERSION = 2  # of the files in --out; a stage made by another version is not read


def open_output(out):
    """Makes the folder of a run, or says why it cannot be used."""
    mark = Path(out, "version")
    try:
        os.makedirs(out, exist_ok=True)
        found = mark.read_text().strip() if mark.exists() else str(VERSION)
        if found != str(VERSION):
            raise UserError(f"{out} was written by version {found} of this program and this is "
                            f"version {VERSION}: choose another --out, or remove that folder")
        write_text(mark, f"{VERSION}\n")
    except UnicodeError:
        raise UserError(f"{mark} is damaged: choose another --out, or remove that folder") from None
    except OSError as error:
        raise UserError(f"cannot write to --out {out} ({error.strerror}): choose another folder") \
            from None


def stage(cfg, name, inputs, make):
    """The folder of one finished stage: made by `make(folder)`, or reused from an earlier run.

    The folder is named after what went in, so runs with other settings lie side by side, and it
    gets that name only when it is whole, so an interrupted stage is as if never begun.
    """
    path = Path(cfg.out, "stages", f"{slug(name)}-{fingerprint(inputs)}")
    if path.exists():
        print(f"  {name}: reused from {path}")
        return path
    begin, temporary = time.time(), Path(f"{path}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        make(temporary)
        write_text(temporary / "inputs.json", json.dumps(inputs, indent=2) + "\n")
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # what an interrupted stage has left
    print(f"  {name}: {time.time() - begin:.0f} s, kept in {path}")
    return path


@contextlib.contextmanager
def reading(path):
    """What goes wrong while a finished stage is read becomes one sentence with the remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it and run again, only this is "
                        "made anew") from None


def slug(name):
    """A row's name as a file name. Example: "Empower (0.32)" -> "empower-0.32"."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name.lower()).split())


class Checkpoint(NamedTuple):
    """A language model with its tokenizer, and the folder of both."""

    model: GPT
    encoding: data.Tokenizer
    folder: Path
    name: str  # what tells it from other checkpoints


def load_checkpoint(folder, device, dtype=None):
    """The checkpoint in a folder, of ours or of the published families; its file's dtype if None.

    FileNotFoundError or ValueError says in one sentence what cannot be used.
    """
    model, folder = GPT.from_pretrained(folder, device, dtype).eval(), Path(folder)
    encoding = data.load_tokenizer(folder)
    model.writable = encoding.size  # published models have more rows than their tokenizers tokens
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)
             for path in sorted([*folder.glob("*.safetensors"), folder / "config.json",
                                 *tokenizer_files(folder)])]
    return Checkpoint(model, encoding, folder, fingerprint(
        [str(folder.resolve()), str(model.lm_head.weight.dtype), files]))


def load_stage(folder, device):
    """The checkpoint that an earlier stage has made; the folder's name says what went in."""
    with reading(folder):
        return load_checkpoint(folder, device)._replace(name=folder.name)


def save_tuned(model, dtype, base, folder):
    """A fine-tuned model in the dtype of its base, with the base's tokenizer files beside it."""
    model.to(dtype).save_pretrained(folder)
    for path in tokenizer_files(base.folder):
        copy_to = Path(folder, path.relative_to(base.folder))
        copy_to.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy_to)


# ------------------------------------------------------------------- the stages of a run


def draw_contest(cfg):
    """The problems to learn from, to choose constants on, and of the results (Section 5.1)."""
    try:
        return make_contest(python_generator(cfg, "contest"), cfg.train_problems,
                            cfg.dev_problems, cfg.held_out_problems)
    except ValueError as error:
        raise UserError(f"{error}: lower --train-problems") from None


def gpt_config(cfg, vocab_size):
    """Heads of 32 features, two query heads to a key-value head; room for the longest game."""
    heads, end = cfg.width // 32, vocab_size - 1
    return GPTConfig(vocab_size, cfg.width, 3 * cfg.width, cfg.layers, heads,
                     num_key_value_heads=heads // 2 if heads % 2 == 0 else heads, head_dim=32,
                     max_position_embeddings=4096, bos_token_id=end, eos_token_id=end)


def base_model(cfg, contest, device, tokenizer_of=None):
    """The language model of all roles, pre-trained or reused.

    Half of the documents stand behind their statement: with it in its context the model is the
    human; without it, the scorer and Base. tokenizer_of: a checkpoint beside which it is to play,
    so that both write the same tokens; None for a tokenizer of its own.
    """
    rng = python_generator(cfg, "documents")
    drawn = [rng.choice(contest.train) for _ in range(cfg.pretrain_steps * cfg.pretrain_batch)]
    texts = [(problem.statement * rng.randint(0, 1),
              write_program(problem.parts, draw_style(rng))) for problem in drawn]

    def make(folder):
        encoding = tokenizer_of.encoding if tokenizer_of else data.train_tokenizer(
            [text for pair in texts[:4000] for text in pair], cfg.vocab_size)
        pretrain(cfg, encoding, [data.document(encoding, *pair) for pair in texts], device, folder)

    inputs = {"texts": fingerprint(texts), **settings(cfg, "pretrain_steps", *PRETRAINING)}
    if tokenizer_of:
        inputs["tokenizer_of"] = tokenizer_of.name
    name = "human" if tokenizer_of else "base"
    return load_stage(stage(cfg, name, inputs, make), device)


def pretrain(cfg, encoding, documents, device, folder):
    """A new GPT, trained on documents (token ids each), and its tokenizer, into a folder."""
    model = GPT(gpt_config(cfg, encoding.n_vocab), torch_generator(cfg, "weights", "cpu"))
    model.to(device)
    losses = train(model, [(ids, 1) for ids in documents], cfg.pretrain_batch,
                   muon_and_adamw(model, cfg.pretrain_lr), python_generator(cfg, "batches"),
                   "pre-train")
    print(f"  {sum(map(len, documents)):,} tokens seen; loss from {losses[0]:.2f} to "
          f"{np.mean(losses[-50:]):.3f} nats a token")
    model.save_pretrained(folder)
    data.save_tokenizer(encoding, folder)


def human_programs(cfg, base, contest, human=None):
    """Section 5.1: the human attempts each training problem once; nothing is filtered.

    human: a checkpoint of her own; None for the base model, which then reads the statements.
    Returns (token ids, costs in bits under pi_hat) of each program.
    """
    human = human or base
    path = stage(cfg, "programs", {"base": base.name, "human": human.name,
                                   **settings(cfg, *SAMPLING)},
                 lambda folder: write_programs(cfg, base, human.model, contest, folder))
    with reading(path), Path(path, "programs.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
        return [(base.encoding.encode_ordinary(row["program"]), np.array(row["nll"]))
                for row in rows]


def write_programs(cfg, base, human, contest, folder):
    """programs.jsonl: {"statement", "program", "nll": the bits of each token under pi_hat}."""
    encoding = base.encoding
    generator, written = torch_generator(cfg, "programs", human.device), []
    for k in tqdm(range(0, len(contest.train), 512), "human writes", unit="batch", leave=False,
                  disable=None):
        texts = [[encoding.start, *encoding.encode_ordinary(problem.statement)]
                 for problem in contest.train[k:k + 512]]
        new, _ = sample(human, KVCache(human, len(texts)), texts, UNLIMITED_TOKENS,
                        encoding.stops, cfg.temperature, cfg.top_p, generator=generator)
        written += [encoding.decode(ids) for ids in new]
    costs = score(base.model, [encoding.encode_ordinary(program) for program in written],
                  encoding.start)
    rows = [{"statement": problem.statement, "program": program, "nll": nll.tolist()}
            for problem, program, nll in zip(contest.train, written, costs) if program]
    write_text(folder / "programs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def choose_completions(programs, states, rule, rng):
    """(prefix, completion) of each program: one state n, and as many tokens as the rule says."""
    return [(ids[:n], ids[n:n + rule(nll[n:], rng)]) for (ids, nll), n in zip(programs, states)]


def train_assistants(cfg, base, programs, tune, rules):
    """Section 4.2: an assistant fine-tuned on the completions of each rule: {name: its folder}.

    Section 4.1: one state of each program, the same for every rule. `tune(model, examples, rng,
    label)` is how a model is trained; rules: {name: rule}, as of `completion_rules`.
    """
    states = data.draw_states(numpy_generator(cfg, "states"), [len(ids) for ids, _ in programs])
    assistants = {}
    for name, rule in rules.items():
        pairs = choose_completions(programs, states, rule, numpy_generator(cfg, "lengths"))
        inputs = {"base": base.name, "pairs": fingerprint(pairs),
                  **settings(cfg, *SAMPLING, "max_suggestion", "sft_batch", "sft_lr")}
        assistants[name] = stage(cfg, name, inputs, lambda folder: make_assistant(
            cfg, name, base, pairs, tune, folder))
    return assistants


def make_assistant(cfg, name, base, pairs, tune, folder):
    """Fine-tunes a copy of the base model on prefix -> completion, stop token (Section 4.1).

    A fifth of the pairs is held out. stopping.json compares, on these, the lengths that the rule
    asks for with the lengths that the assistant then writes.
    """
    assistant, encoding = copy.deepcopy(base.model).float(), base.encoding
    n_train = len(pairs) - len(pairs) // 5
    examples = [([encoding.start, *prefix, *completion, encoding.stop], 1 + len(prefix))
                for prefix, completion in pairs[:n_train]]
    tune(assistant, examples, python_generator(cfg, name), name)
    save_tuned(assistant, base.model.lm_head.weight.dtype, base, folder)
    stopping = check_stopping(name, assistant, encoding, pairs[n_train:], cfg.max_suggestion,
                              cfg.temperature, cfg.top_p, torch_generator(
                                  cfg, f"stopping of {name}", assistant.device))
    write_text(folder / "stopping.json", json.dumps(stopping) + "\n")


def check_stopping(name, assistant, encoding, pairs, max_suggestion, temperature=0.0, top_p=1.0,
                   generator=None):
    """The lengths that a rule asks for on pairs held out, and those that its assistant writes."""
    longest, written = max(len(prefix) for prefix, _ in pairs) + max_suggestion, []
    rows = max(1, 2**25 // (longest * assistant.config.hidden_size))  # so many fit into memory
    for k in range(0, len(pairs), rows):
        prefixes = [[encoding.start, *prefix] for prefix, _ in pairs[k:k + rows]]
        new, _ = sample(assistant, KVCache(assistant, len(prefixes)), prefixes, max_suggestion,
                        encoding.stops, temperature, top_p, generator=generator)
        written += map(len, new)
    asked, written = np.array([len(completion) for _, completion in pairs]), np.array(written)
    return {"name": name, "target_length": asked.mean(), "suggestion_length": written.mean(),
            "silent_targets": (asked == 0).mean(), "silent_suggestions": (written == 0).mean()}


def load_stopping(folder):
    """What `check_stopping` found of the assistant in a stage's folder."""
    with reading(folder):
        return json.loads(Path(folder, "stopping.json").read_text())


class Game(NamedTuple):
    """Whom the assistants sit beside, at what, and for how long (Section 3)."""

    human: object      # simhuman.Human or simhuman.Author
    goals: list        # what she knows, token ids for each problem
    rounds: int
    judge: Callable    # sets `passed` of each episode
    inputs: dict       # what tells this game from others, plain data


def contest_game(cfg, human, problems):
    """The game on generated problems: the human, a checkpoint, reads the statement; tests judge."""
    encoding = human.encoding
    reader = Human(human.model, token_nll,
                   functools.partial(simhuman.JUDGING[cfg.judging], tau=cfg.tau),
                   cfg.turn_tokens, cfg.temperature, cfg.top_p)
    return Game(reader, [[encoding.start, *encoding.encode_ordinary(problem.statement)]
                        for problem in problems], cfg.rounds,
                lambda episodes: simhuman.judge_episodes(episodes, problems, encoding.decode),
                {"problems": fingerprint([dataclasses.astuple(problem) for problem in problems]),
                 "human": human.name, **settings(cfg, "rounds", "judging", "tau")})


class Lab(NamedTuple):
    """What the rows of one table are made with: a model, a human, her programs, and the game."""

    cfg: Config
    contest: Contest
    base: Checkpoint    # pi_hat, and what assistants are copies of
    human: Checkpoint   # pi_H: the same model, unless she has one of her own
    programs: list      # (token ids, bits of each token) of each that she wrote to learn from
    game: Game          # on the held-out problems

    def train(self, rules, programs=None):
        """{name: folder} of an assistant for each {name: rule}, trained or reused."""
        return train_assistants(self.cfg, self.base, programs or self.programs,
                                pretrained_here(self.cfg), rules)

    def play(self, rows):
        """{name: episodes} of rows {name: (folder, options)}, played or reused."""
        return {name: play_row(self.cfg, name, row, self.base, self.game)
                for name, row in rows.items()}


def laboratory(cfg, device, **her_model):
    """The Lab of a Config, made or reused (Section 5.1).

    her_model: settings of a model of the human's own, as width=192, which is pre-trained apart on
    other documents; without them she is the base model, which then reads the statements.
    """
    contest = draw_contest(cfg)
    base = human = base_model(cfg, contest, device)
    if her_model:
        hers = dataclasses.replace(cfg, seed=derived_seed(cfg, "second human"), **her_model)
        human = base_model(hers, contest, device, tokenizer_of=base)
    return Lab(cfg, contest, base, human, human_programs(cfg, base, contest, human),
               contest_game(cfg, human, contest.held_out))


def rows_of_the_table(cfg, base, assistants):
    """{name: (folder of the assistant or None, how it differs from the default)}."""
    return {
        "Human alone": (None, {}),
        "Base": (base.folder, {}),
        "Base-10": (base.folder, {"max_tokens": 10}),
        "Base-20": (base.folder, {"max_tokens": 20}),
        f"Base stopped at {cfg.eta:g} bits": (base.folder, {"max_cost": cfg.eta}),
        **{name: (path, {}) for name, path in assistants.items()},
    }


def unlimited_rounds(cfg):
    """The rounds of a game that no program of this contest needs."""
    return UNLIMITED_TOKENS // cfg.turn_tokens + 1


def all_rows(cfg, base, assistants):
    """The rows of the generated contest: the human without a limit and the ceiling frame them."""
    return {"Human alone, no round limit": (None, {"rounds": unlimited_rounds(cfg)}),
            **rows_of_the_table(cfg, base, assistants),
            "Base, knows the goal": (base.folder, {"knows_goal": True})}


def play_row(cfg, name, row, base, game):
    """One row of the table: the episodes of one assistant on every problem, played or reused."""
    path, options = row
    inputs = {"base": base.name, "assistant": path and path.name, **game.inputs,
              **settings(cfg, *SAMPLING, "turn_tokens", "max_suggestion"), **options}
    folder = stage(cfg, f"row {name}", inputs,
                   lambda folder: play_and_judge(cfg, name, path, options, base, game, folder))
    return load_episodes(folder)


def play_and_judge(cfg, name, path, options, base, game, folder):
    """The game on every problem, then the judge on what came of it. Writes episodes.json."""
    options = {"max_tokens": cfg.max_suggestion, "rounds": game.rounds, **options}
    rounds, assistant = options.pop("rounds"), None
    model, encoding = base.model, base.encoding
    if path:
        beside = model if path == base.folder else load_stage(path, model.device).model
        assistant = Assistant(beside, temperature=cfg.temperature, top_p=cfg.top_p, **options)
    episodes = simhuman.play(game.goals, game.human, assistant, rounds, encoding.start,
                             encoding.stops, torch_generator(cfg, f"game of {name}", model.device),
                             name)
    game.judge(episodes)
    write_text(folder / "episodes.json",
               json.dumps([dataclasses.asdict(episode) for episode in episodes]) + "\n")


def load_episodes(folder):
    """The episodes that `play_and_judge` left in a stage's folder."""
    with reading(folder):
        return [simhuman.Episode(**{**row, "turns": [simhuman.Turn(**t) for t in row["turns"]]})
                for row in json.loads(Path(folder, "episodes.json").read_text())]


def write_transcripts(cfg, episodes, statement, decode):
    """The first problem's episode with each assistant, as a person reads it."""
    os.makedirs(Path(cfg.out, "transcripts"), exist_ok=True)
    for name, row in episodes.items():
        write_text(Path(cfg.out, "transcripts", f"{slug(name)}.txt"),
                   simhuman.transcript(row[0], statement, decode))


def token_texts(encoding, ids):
    """The text of each token; a character of several tokens is the last one's."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(encoding.decode_single_token_bytes(i)) for i in ids]


def choices(nll, eta):
    """Positions (a list of int) of the tokens that are left to the human in a whole program.

    The assistant writes what Algorithm 1 allows, she writes the next token, and so on by turns;
    where it reaches the end she writes nothing more.
    Example: costs [3, 0, 0.2, 0.2, 2] with eta = 0.32: [0, 3, 4].
    """
    lengths, human, n = empower_lengths(nll, eta), [], 0
    while n < len(nll) and n + lengths[n] < len(nll):
        human.append(int(n + lengths[n]))
        n = human[-1] + 1
    return human


def marked(texts, human):
    """A program in plain text, what is left to the human in ‹angles›."""
    human = set(human)
    return "".join(f"‹{text}›" if k in human else text for k, text in enumerate(texts))


# ------------------------------------------------------------------- the table and the claims

# The paper's (Pass@1, accept ratio, DPR) of three assistants with each of its two humans,
# Gemma-3-27B-it and Llama-3.3-70B-Instruct. It has no Base-20 in simulation.
PAPER = {
    "Gemma": {"Empower": [(.176, .670, .150), (.178, .630, .156), (.170, .659, .148)],
              "SFT-20": [(.070, .231, .057), (.086, .299, .072), (.088, .381, .077)],
              "SFT-10": [(.062, .268, .053), (.101, .367, .086), (.101, .461, .088)],
              "Base-10": [(.064, .649, .057), (.090, .582, .080), (.062, .530, .055)],
              "Base": [(.064, .383, .055), (.092, .400, .083), (.086, .312, .077)]},
    "Llama": {"Empower": [(.218, .488, .176), (.282, .317, .208), (.249, .459, .201)],
              "SFT-20": [(.167, .192, .116), (.097, .165, .066), (.145, .188, .102)],
              "SFT-10": [(.152, .299, .114), (.104, .257, .074), (.165, .292, .126)],
              "SFT-RAND": [(.156, .201, .109), (.112, .184, .075), (.145, .226, .106)],
              "Base-10": [(.198, .592, .162), (.156, .537, .127), (.174, .597, .143)],
              "Base": [(.183, .351, .143), (.170, .297, .134), (.161, .299, .127)]}}
PAPER_METRICS = ("pass@1", "accept_ratio", "dpr")


def paper_means(human, row):
    """The paper's (Pass@1, accept ratio, DPR) of a row, means over its three assistants: (3,)."""
    return np.mean(PAPER[human][row], axis=0)


def summarize(name, episodes, cfg):
    """One row of the table; all counts are means over problems, ratios are pooled."""
    n, turns = len(episodes), sum(len(episode.turns) for episode in episodes)
    offered = sum(episode.offered for episode in episodes)
    read = sum(episode.tokens_read for episode in episodes)
    row = {"name": name}
    row["pass@1"], row["pass@1_se"] = simhuman.pass_at_1(episodes)
    row["accept_ratio"], row["accept_ratio_se"] = simhuman.accept_ratio(episodes) \
        if offered else (None, None)
    row["share_saved"], row["share_saved_se"] = simhuman.share_saved(episodes)
    row["dpr"], row["dpr_se"] = simhuman.discounted_pass_rate(
        episodes, cfg.gamma, cfg.alpha, cfg.beta)
    row["tokens_read"] = read / n
    row["tokens_written"] = sum(episode.tokens_written for episode in episodes) / n
    row["suggestions"] = offered / n
    row["suggestion_length"] = read / offered if offered else None
    row["silent_share"] = 1 - offered / turns
    return row


def claims(cfg, episodes, values):
    """Empower minus each baseline, with a 95% interval: does the paper's claim hold here?

    values: {metric: its value for one episode}.
    """
    rng, found = np.random.default_rng(derived_seed(cfg, "bootstrap")), []
    for baseline in ("SFT-10", "SFT-20", "SFT-RAND", "Base-10", "Base-20"):
        for metric, value in values.items():
            a, b = ([value(e) for e in episodes[row]]
                    for row in (f"Empower ({cfg.eta:g})", baseline))
            difference, low, high = simhuman.paired_difference(a, b, rng)
            found.append({
                "baseline": baseline, "metric": metric, "difference": difference,
                "low": low, "high": high, "holds": bool(low > 0),
                "gain": difference / np.mean(b) if np.mean(b) else None,
                "paper_gain": paper_gain(baseline, metric)})
    return found


def paper_gain(baseline, metric):
    """How much better Empower is than a baseline in the paper's table, relative; None: no such.

    With its first human, or with the second where it has the row for her alone (SFT-RAND).
    """
    human = next((human for human, rows in PAPER.items() if baseline in rows), None)
    if human is None or metric not in PAPER_METRICS:
        return None
    ours, theirs = (paper_means(human, row) for row in ("Empower", baseline))
    return float((ours / theirs)[PAPER_METRICS.index(metric)] - 1)


def table(rows, columns):
    """An aligned table of dicts that reads as well in a terminal as in a README.

    columns: {header: template of a cell}. A cell whose value is None is a dash.
    """
    def cell(template, row):
        try:
            return template.format_map(row)
        except TypeError:  # None has no digits
            return "-"

    cells = [list(columns), *([cell(t, row) for t in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *(
        text.rjust(width) for text, width in zip(row[1:], widths[1:]))]) + " |" for row in cells]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


RESULTS = {"assistant": "{name}", "Pass@1": "{pass@1:.3f} ± {pass@1_se:.3f}",
           "accept ratio": "{accept_ratio:.3f} ± {accept_ratio_se:.3f}",
           "share saved": "{share_saved:.3f} ± {share_saved_se:.3f}",
           "DPR": "{dpr:.3f} ± {dpr_se:.3f}", "read": "{tokens_read:.1f}",
           "written": "{tokens_written:.1f}", "suggestions": "{suggestions:.1f}",
           "length": "{suggestion_length:.1f}", "silent": "{silent_share:.2f}"}
STOPPING = {"assistant": "{name}", "asked": "{target_length:.1f}",
            "written": "{suggestion_length:.1f}", "within 20%": "{close}",
            "asked empty": "{silent_targets:.2f}", "written empty": "{silent_suggestions:.2f}"}
CLAIMS = {"against": "{baseline}, {metric}", "difference": "{difference:+.3f}",
          "95% interval": "{low:+.3f} to {high:+.3f}", "holds": "{holds}",
          "our gain": "{gain:+.0%}", "paper's gain": "{paper_gain:+.0%}"}


def with_verdict(stopping):
    """Rows that say whether each assistant writes about as much as its rule asks for."""
    return [{**row, "close": "yes" if abs(row["suggestion_length"] - row["target_length"])
             <= 0.2 * row["target_length"] else "NO"} for row in stopping]


def report(results):
    """The tables of a run as one text."""
    rows = results["rows"]
    first = ("Pass@1: share of the problems that are solved" if "pass@1" in rows[0] else
             "Share saved: of the program's tokens, those that the assistant wrote;\nevery "
             "program is right in the end, so DPR is the discount alone")
    columns = {header: template for header, template in RESULTS.items()
               if header != ("share saved" if "pass@1" in rows[0] else "Pass@1")}
    return "\n\n".join([
        f"The game on {results['problems']} held-out problems. {first};\naccept ratio: accepted "
        "over offered suggestions; DPR: discounted pass rate; ± one\nstandard error over "
        "problems. Then means over problems of tokens read, tokens written\nand suggestions; "
        "tokens a suggestion; share of silent turns.",
        table(rows, columns),
        "Did the assistants learn to stop? Tokens that the rule asks for, tokens written, and the "
        "share\nof each that is empty, on programs held out of fine-tuning.",
        table(with_verdict(results["stopping"]), STOPPING),
        f"Empower (eta = {results['config']['eta']:g}) minus each baseline, with a 95% interval "
        "(paired bootstrap over\nproblems). It holds where the interval is above zero. Gains are "
        "relative; the paper's, where it has\nthem, are means over its three assistants.",
        table([{**claim, "holds": "yes" if claim["holds"] else "NO"}
               for claim in results["claims"]],
              {header: template for header, template in CLAIMS.items() if "pass@1" in rows[0]
               or header != "paper's gain"})])


# ------------------------------------------------------------------- the experiment


def run(cfg):
    """The paper's experiment in miniature, from nothing to the tables; returns what it found.

    Everything lies in cfg.out: results.json, transcripts/, and under stages/ the checkpoints, the
    human's programs and the episodes.
    """
    begin, device = time.time(), announce(cfg)
    if cfg.calibrate:
        return calibrate(cfg, device)

    # Section 5.1: problems; one language model, which is pi_H, pi_hat and Base; her programs.
    lab = laboratory(cfg, device)
    (ids, nll), encoding = lab.programs[0], lab.base.encoding
    print("\nThe human's first program; in ‹angles› what is not obvious without the problem's "
          f"statement:\n\n{marked(token_texts(encoding, ids), choices(nll, cfg.eta))}")

    # Section 4: the assistants learn.
    assistants = lab.train(completion_rules(cfg))

    # Section 3: the game, on problems of compositions that nobody has seen.
    episodes = lab.play(all_rows(cfg, lab.base, assistants))

    # Section 5.2: the tables, and whether the claims hold.
    write_transcripts(cfg, episodes, lab.contest.held_out[0].statement, encoding.decode)
    return conclude(cfg, begin, device, {"base": lab.base.folder, **assistants}, episodes,
                    {"pass@1": lambda episode: float(episode.passed), "dpr": dpr_of(cfg)})


def pretrained_here(cfg):
    """How a GPT that was pre-trained here is fine-tuned: as it was pre-trained, at another rate."""
    return lambda model, examples, rng, label: train(
        model, examples, cfg.sft_batch, muon_and_adamw(model, cfg.sft_lr), rng, label)


def dpr_of(cfg):
    """The discounted pass of one episode under the settings: a function of it (Section 5.1)."""
    return functools.partial(simhuman.discounted, gamma=cfg.gamma, alpha=cfg.alpha, beta=cfg.beta)


def conclude(cfg, begin, device, models, episodes, values):
    """What a run has found, also written to results.json; `values` as in `claims`.

    models: {name: folder} of the base model, which comes first, and of the assistants.
    """
    rows = [summarize(name, row, cfg) for name, row in episodes.items()]
    if "pass@1" not in values:
        rows = [{key: value for key, value in row.items() if "pass@1" not in key} for row in rows]
    results = {"config": dataclasses.asdict(cfg), "environment": environment(device),
               "problems": len(episodes["Base"]), "rows": rows,
               "stopping": [load_stopping(path) for path in list(models.values())[1:]],
               "models": {name: path.name for name, path in models.items()
                          if path.parent == Path(cfg.out, "stages")},
               "claims": claims(cfg, episodes, values), "seconds": round(time.time() - begin)}
    write_text(Path(cfg.out, "results.json"), json.dumps(results, indent=2, allow_nan=False) + "\n")
    print(f"\n{report(results)}\n\nresults.json, transcripts/ and every stage are in {cfg.out}")
    return results


def calibrate(cfg, device):
    """Chooses tau on development problems, by the two untrained rows alone; returns it.

    The accept ratios of Base and Base-10 shall come as near as they can (least squares) to the
    paper's, since the paper does not say how strict its human is.
    """
    contest = draw_contest(cfg)
    base = base_model(cfg, contest, device)
    rows, tried = rows_of_the_table(cfg, base, {}), []
    paper = {name: paper_means("Gemma", name)[1] for name in ("Base", "Base-10")}
    for tau in TAUS[cfg.judging]:
        at = dataclasses.replace(cfg, tau=tau)
        game = contest_game(at, base, contest.dev)
        ratios = {name: simhuman.accept_ratio(play_row(at, name, rows[name], base, game))[0]
                  for name in paper}
        tried.append({"tau": tau, **ratios, "distance": math.dist(
            ratios.values(), paper.values())})
    best = min(tried, key=lambda row: row["distance"])["tau"]
    print(table(tried, {"tau": "{tau:g}", **{name: f"{{{name}:.3f}}" for name in paper},
                        "distance": "{distance:.3f}"}))
    print(f"--judging {cfg.judging} --tau {best:g} is nearest to the paper's "
          f"{' and '.join(f'{ratio:.3f}' for ratio in paper.values())}")
    return best


# ------------------------------------------------------------------- the command line


def commands():
    """{name: (its settings, what it does)}; the experiment itself is the command without a name."""
    import realcode  # which imports this file
    return {"": (Config, run), **realcode.COMMANDS}


def pick_device(name):
    """The torch device of a name; "auto" is CUDA, else MPS, else the CPU."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
               "cpu": True}
    if name == "auto":
        return next(device for device, is_there in present.items() if is_there)
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):  # the latter where torch was built without CUDA
        raise UserError(f"--device {name} is not to be had here: choose from " + ", ".join(
            device for device, is_there in present.items() if is_there)) from None
    return name


def environment(device):
    """What a result depends on beside its settings, plain data."""
    return {"python": platform.python_version(), "torch": torch.__version__, "device": device,
            "threads": torch.get_num_threads(), "platform": platform.platform()}


def describe(cfg, model, device):
    """What a command opens with, beside what it will do."""
    print(f"A GPT of {sum(p.numel() for p in model.parameters()):,} parameters, seed {cfg.seed}, "
          f"device {device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"output in {cfg.out}")


def prepare(cfg):
    """Opens the output folder and tries the judge, before any work is done; returns the device."""
    device = pick_device(cfg.device)
    open_output(cfg.out)
    try:
        simhuman.check_judge()
    except RuntimeError as error:
        raise UserError(str(error)) from None
    return device


def announce(cfg):
    """What `prepare` does, and says what will be done and on what; returns the device."""
    device = prepare(cfg)
    with torch.device("meta"):
        model = GPT(gpt_config(cfg, cfg.vocab_size))
    print(f"Pre-train a GPT, let the human write {cfg.train_problems} programs, fine-tune "
          f"{len(completion_rules(cfg))} assistants\nand play {cfg.held_out_problems} unseen "
          f"problems with each: about {MINUTES} minutes on 2 CPU cores, less where stages "
          "are reused.")
    describe(cfg, model, device)
    return device


class Parser(argparse.ArgumentParser):
    """A parser of a command line whose errors are one sentence, with exit status 2."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"{self.prog.split()[0]}: {message}; see --help\n")


def parse(argv):
    """The command line, one flag for each field of a command's settings: (command, settings)."""
    argv, known = list(sys.argv[1:] if argv is None else argv), commands()
    name = argv.pop(0) if argv and argv[0] in known else ""
    config, command = known[name]
    parser = Parser(
        prog=f"empower.py {name}".strip(),
        description=command.__doc__ if name else __doc__.split("\n\n")[0],
        epilog=None if name else "Other commands, each with its own --help: "
                                 f"{', '.join(filter(None, known))}.")
    for field in dataclasses.fields(config):
        text = field.metadata["help"]
        if field.default not in (None, "", False):
            text += f" (default: {field.default})"
        options = {"help": text, "default": argparse.SUPPRESS}  # the field has it
        options |= {"action": "store_true"} if field.type is bool else {"type": field.type}
        if field.metadata["positional"]:
            parser.add_argument(field.name, metavar=field.name.upper(), **options)
        else:
            parser.add_argument(f"--{field.name.replace('_', '-')}", **options)
    return command, config(**vars(parser.parse_args(argv)))


def main(argv=None):
    """Runs one command of the command line; returns the exit status."""
    def work():
        command, cfg = parse(argv)
        command(cfg)

    return carry_out(work, "empower.py")


def carry_out(work, program):
    """The exit status of work(): 0, 2 after a user's error, 130 after Ctrl-C; no traceback."""
    def say(sentence):
        print(f"{program}: {sentence}", file=sys.stderr)

    if hasattr(sys.stdout, "reconfigure"):
        # A terminal without ┃ shows ? in its place, and a log grows line by line.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        work()
    except UserError as error:
        say(error)
        return 2
    except torch.OutOfMemoryError as error:
        say(f"out of memory ({str(error).splitlines()[0]}): choose smaller sizes, where there are "
            "such flags --context, --micro-batch and --recompute")
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        say(f"{error}; what was finished is kept, run again when that is mended")
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        say("interrupted; what was finished is kept, run again to go on")
        return 130
    return 0


if __name__ == "__main__":
    import empower  # this file once more, under the name by which realcode.py knows it
    sys.exit(empower.main())
