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
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import simhuman
from model import GPT, GPTConfig, KVCache, Muon, sample, write_text
from simhuman import Assistant, Human

# ------------------------------------------------------------------- the paper (Section 4.2)


def token_nll(logits, ids):
    """The cost of each token in bits, -log2 p(id): logits (..., T, V), ids (..., T) -> (..., T).

    Example: logits [0, 0] give each of two tokens probability 1/2, which costs 1 bit.
    """
    nll = F.cross_entropy(logits.flatten(0, -2).float(), ids.flatten(), reduction="none")
    return nll.view(ids.shape) / math.log(2)


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


def completion_rules(cfg):
    """How many tokens each assistant learns to write: {name: rule(costs after the prefix, rng)}.

    The rule is all that tells Empower from its baselines; everything below is shared.
    """
    return {
        "SFT-10": lambda nll, rng: 10,
        "SFT-20": lambda nll, rng: 20,
        "SFT-RAND": lambda nll, rng: int(rng.integers(1, 31)),
        f"Empower ({cfg.eta:g})": lambda nll, rng: empower_length(nll, cfg.eta),
        f"Empower ({cfg.eta_wide:g})": lambda nll, rng: empower_length(nll, cfg.eta_wide),
    }


# ------------------------------------------------------------------- settings


class UserError(ValueError):
    """Something that a person typed or handed over cannot be used; says what, and the remedy."""


def setting(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the experiment; the command line is derived from these fields."""

    out: str = setting("out", "folder for everything that a run makes")
    seed: int = setting(0, "feeds all randomness, by separate generators")
    device: str = setting("auto", "auto, cpu, cuda or mps")

    eta: float = setting(0.32, "threshold of Empower, bits (Section 5.1)")
    eta_wide: float = setting(4.0, "threshold of the second Empower row, bits (Section 5.3)")

    train_problems: int = setting(4138, "problems to learn from, as many as the paper's (5.1)")
    dev_problems: int = setting(100, "problems on which constants are chosen")
    held_out_problems: int = setting(300, "problems of the results, compositions never seen")

    vocab_size: int = setting(640, "tokens of the vocabulary at most, all 256 bytes among them")
    width: int = setting(128, "hidden size of the model")
    layers: int = setting(3, "layers of the model")
    pretrain_steps: int = setting(1400, "updates of pre-training")
    pretrain_batch: int = setting(16, "documents an update")
    pretrain_lr: float = setting(0.02, "Muon's learning rate; AdamW's is a tenth")

    sft_batch: int = setting(16, "examples an update of fine-tuning; larger ones learn no stop")
    sft_lr: float = setting(0.01, "Muon's learning rate in fine-tuning; AdamW's is a tenth")

    temperature: float = setting(1.0, "sampling of human and assistants (5.1: defaults)")
    top_p: float = setting(1.0, "share of the probability that sampling keeps")
    max_suggestion: int = setting(100, "cap on a suggestion, tokens; no program is longer")

    turn_tokens: int = setting(4, "K_H, most tokens that the human types in a turn (5.1: 10)")
    rounds: int = setting(19, "most rounds a problem; K_H x rounds is 1.25 programs, as in 5.1")
    judging: str = setting("skim", "how the human judges a suggestion: skim, careful or strict")
    tau: float = setting(None, "what she tolerates, bits (default: what --calibrate chose: "
                               "skim 1.1, careful 16, strict 14)")

    gamma: float = setting(0.9935, "discount of DPR: 0.999 ** (400 / tokens of a program)")
    alpha: float = setting(0.1, "DPR's weight of a token read (5.1)")
    beta: float = setting(0.5, "DPR's weight of a token written (5.1)")


    def __post_init__(self):
        if self.judging not in simhuman.JUDGING:
            raise UserError(f"--judging is {self.judging!r}: choose "
                            f"{' or '.join(simhuman.JUDGING)}")
        if self.tau is None:
            object.__setattr__(self, "tau", TAU[self.judging])  # frozen for everybody else
        at_least = {"eta": 0, "eta_wide": 0, "tau": 0, "temperature": 0, "alpha": 0, "beta": 0,
                    "rounds": 1, "turn_tokens": 1, "max_suggestion": 1, "train_problems": 10,
                    "dev_problems": 1, "held_out_problems": 2, "vocab_size": 257, "width": 32,
                    "layers": 1, "pretrain_steps": 1, "pretrain_batch": 1, "sft_batch": 1,
                    "pretrain_lr": 0, "sft_lr": 0, "top_p": 0, "gamma": 0}
        for name, least in at_least.items():
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: "
                                f"give a finite number of at least {least}")
        for name, most in {"top_p": 1, "gamma": 1}.items():
            if not 0 < getattr(self, name) <= most:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: "
                                f"give a number above 0 and at most {most}")
        if self.width % 32:
            raise UserError(f"--width is {self.width}: give a multiple of 32, the size of a head")


# What the game and the sampling depend on; the rest of a stage's inputs it names itself.
SAMPLING = ("seed", "temperature", "top_p")
GAME = ("rounds", "turn_tokens", "max_suggestion", "judging", "tau")
TAU = {"skim": 1.1, "careful": 16.0, "strict": 14.0}  # the choices of --calibrate
UNLIMITED_TOKENS = 400  # a human without a round limit types this much: six programs
# tau in bits that --calibrate tries, by the rule: mean, sum and maximum of a suggestion's costs
TAUS = {"skim": [0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0],
        "careful": [8, 12, 16, 20, 24, 32, 48, 64], "strict": [8, 10, 11, 12, 13, 14, 16]}
PAPER_ACCEPT_RATIOS = {"Base": 0.365, "Base-10": 0.587}  # means over its assistants, human Gemma


def settings(cfg, *names):
    return {name: getattr(cfg, name) for name in names}


def derived_seed(cfg, purpose):
    """A seed of its own for each purpose, so that no stage depends on what ran before it."""
    digest = hashlib.sha256(f"{cfg.seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def fingerprint(data):
    """Ten letters that change when anything in plain data changes, the name of what was made."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]


def torch_generator(cfg, purpose, device):
    return torch.Generator(device).manual_seed(derived_seed(cfg, purpose))


def numpy_generator(cfg, purpose):
    return np.random.default_rng(derived_seed(cfg, purpose))


def python_generator(cfg, purpose):
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


def train(model, examples, batch_size, lr, rng, label):
    """One pass over `examples`, (token ids, start) each, with loss on ids[start:] alone.

    Pre-training and fine-tuning are this same loop. Muon updates the weight matrices (lr) and
    AdamW the embedding and the norms (lr / 10); both rates rise over the first 2% of the updates
    and fall to zero over the last 60%. Returns the mean loss of each update, in nats a token.
    """
    device = next(model.parameters()).device
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers = [Muon(matrices, lr=lr),
                  torch.optim.AdamW(others, lr=lr / 10, betas=(0.9, 0.95), weight_decay=0.0)]
    batches = make_batches(examples, batch_size, rng)
    n = len(batches)
    schedule = [torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1, (k + 1) / (0.02 * n), (n - k) / (0.6 * n)))
        for optimizer in optimizers]
    losses = []
    with tqdm(batches, desc=label, unit="update", leave=False, disable=None) as bar:
        for batch in bar:
            ids, labels = collate(batch, model.config.max_position_embeddings)
            ids, labels = ids.to(device), labels.to(device)
            logits = model(ids[:, :-1])                                          # (B, T-1, V)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
            loss.backward()
            for step in (*optimizers, *schedule):
                step.step()
            model.zero_grad()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
    return losses


@torch.no_grad()
def score(model, programs, stop_token, batch_size=64):
    """Cost in bits of every token of every program (Section 4.1): a list of arrays (N,).

    One forward pass gives the costs for all states, since a token's cost does not depend on which
    state was drawn. The model sees the code alone, behind the token that begins a document.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(programs)), key=lambda k: len(programs[k]))
    costs = [None] * len(programs)
    for k in tqdm(range(0, len(order), batch_size), "score", unit="batch", leave=False,
                  disable=None):
        chosen = order[k:k + batch_size]
        ids, _ = collate([([stop_token, *programs[i]], 0) for i in chosen],
                         model.config.max_position_embeddings)
        ids = ids.to(device)
        nll = token_nll(model(ids[:, :-1]), ids[:, 1:])                          # (B, T-1)
        for i, row in zip(chosen, nll.cpu().numpy()):
            costs[i] = row[:len(programs[i])]
    return costs


# ------------------------------------------------------------------- stages and files

VERSION = 1  # of the files in --out; a stage made by another version is not read


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
        raise UserError(f"{path} cannot be read ({error}): remove that folder and run again, "
                        "only this stage is made anew") from None


def slug(name):
    """A row's name as a file name. Example: "Empower (0.32)" -> "empower-0.32"."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name.lower()).split())


def save_checkpoint(model, encoding, folder):
    model.save_pretrained(folder)
    data.save_tokenizer(encoding, folder)


def load_checkpoint(folder, device):
    with reading(folder):
        return GPT.from_pretrained(folder, device).eval(), data.load_tokenizer(folder)


# ------------------------------------------------------------------- the stages of a run


def make_contest(cfg):
    try:
        return data.make_contest(python_generator(cfg, "contest"), cfg.train_problems,
                                 cfg.dev_problems, cfg.held_out_problems)
    except ValueError as error:
        raise UserError(f"{error}: lower --train-problems") from None


def gpt_config(cfg, vocab_size):
    """Heads of 32 features, two query heads to a key-value head; room for the longest game."""
    heads = cfg.width // 32
    return GPTConfig(vocab_size, cfg.width, 3 * cfg.width, cfg.layers, heads,
                     num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
                     head_dim=32, max_position_embeddings=4096)


def base_model(cfg, contest, device):
    """The language model of all roles, pre-trained or reused: (its folder, GPT, Encoding)."""
    rng = python_generator(cfg, "documents")
    drawn = [rng.choice(contest.train) for _ in range(cfg.pretrain_steps * cfg.pretrain_batch)]
    texts = [(problem.statement * rng.randint(0, 1),
              data.write_program(problem.parts, data.draw_style(rng))) for problem in drawn]
    inputs = {"texts": fingerprint(texts), **settings(
        cfg, "seed", "vocab_size", "width", "layers", "pretrain_steps", "pretrain_batch",
        "pretrain_lr")}
    path = stage(cfg, "base", inputs, lambda folder: pretrain(cfg, texts, device, folder))
    return path, *load_checkpoint(path, device)


def pretrain(cfg, texts, device, folder):
    """Trains on (statement or "", program): half of the programs stand behind their statement.

    With the statement in its context the model is the human; without it, the scorer and Base.
    """
    encoding = data.train_tokenizer([text for pair in texts[:4000] for text in pair],
                                    cfg.vocab_size)
    model = GPT(gpt_config(cfg, encoding.n_vocab), torch_generator(cfg, "weights", "cpu"))
    model.to(device)
    examples = [(data.document(encoding, *pair), 1) for pair in texts]
    losses = train(model, examples, cfg.pretrain_batch, cfg.pretrain_lr,
                   python_generator(cfg, "batches"), "pre-train")
    print(f"  {sum(len(ids) for ids, _ in examples):,} tokens seen; loss from {losses[0]:.2f} to "
          f"{np.mean(losses[-50:]):.3f} nats a token")
    save_checkpoint(model, encoding, folder)


def write_programs(cfg, base, encoding, contest, folder):
    """Section 5.1: the human attempts each training problem once; nothing is filtered.

    programs.jsonl: {"statement", "program", "nll": the bits of each token under pi_hat}.
    """
    end, written = encoding.eot_token, []
    generator = torch_generator(cfg, "programs", base.device)
    for k in tqdm(range(0, len(contest.train), 512), "human writes", unit="batch", leave=False,
                  disable=None):
        texts = [[end, *encoding.encode_ordinary(problem.statement)]
                 for problem in contest.train[k:k + 512]]
        new, _ = sample(base, KVCache(base, len(texts)), texts, UNLIMITED_TOKENS,
                        end, cfg.temperature, cfg.top_p,
                        generator=generator)
        written += [encoding.decode(ids) for ids in new]
    costs = score(base, [encoding.encode_ordinary(program) for program in written], end)
    rows = [{"statement": problem.statement, "program": program,
             "nll": nll.tolist()}
            for problem, program, nll in zip(contest.train, written, costs) if program]
    write_text(folder / "programs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def load_programs(folder):
    with reading(folder):
        return [json.loads(line) for line in Path(folder, "programs.jsonl").open()]


def choose_completions(programs, states, encoding, rule, rng):
    """(prefix, completion) of each program: one state n, and as many tokens as the rule says."""
    pairs = []
    for program, n in zip(programs, states):
        ids, nll = encoding.encode_ordinary(program["program"]), np.array(program["nll"])
        pairs.append((ids[:n], ids[n:n + rule(nll[n:], rng)]))
    return pairs


def mark_choices(program, encoding, eta):
    """A program's text in which ‹angles› hold what Algorithm 1 leaves to the human.

    Figure 1 of the paper in plain text: she writes a token, the assistant all that is then obvious.
    """
    ids, n, text = encoding.encode_ordinary(program["program"]), 0, ""
    lengths = empower_lengths(np.array(program["nll"]), eta)
    while n < len(ids):
        if lengths[n] == 0:
            text += f"‹{encoding.decode(ids[n:n + 1])}›"
        else:
            text += encoding.decode(ids[n:n + lengths[n]])
        n += max(1, lengths[n])
    return text


def finetune(cfg, name, base, encoding, pairs, folder):
    """Fine-tunes a copy of the base model on prefix -> completion, stop token (Section 4.1).

    A fifth of the pairs is held out. stopping.json compares, on these, the lengths that the rule
    asks for with the lengths that the assistant then writes.
    """
    assistant, end = copy.deepcopy(base), encoding.eot_token
    n_train = len(pairs) - len(pairs) // 5
    examples = [([end, *prefix, *completion, end], 1 + len(prefix))
                for prefix, completion in pairs[:n_train]]
    train(assistant, examples, cfg.sft_batch, cfg.sft_lr, python_generator(cfg, name), name)
    prefixes = [[end, *prefix] for prefix, _ in pairs[n_train:]]
    suggestions, _ = sample(assistant, KVCache(assistant, len(prefixes)), prefixes,
                            cfg.max_suggestion, end, cfg.temperature, cfg.top_p,
                            generator=torch_generator(cfg, f"stopping of {name}", base.device))
    asked = np.array([len(completion) for _, completion in pairs[n_train:]])
    written = np.array([len(suggestion) for suggestion in suggestions])
    write_text(folder / "stopping.json", json.dumps({
        "name": name, "target_length": asked.mean(), "suggestion_length": written.mean(),
        "silent_targets": (asked == 0).mean(), "silent_suggestions": (written == 0).mean()}) + "\n")
    save_checkpoint(assistant, encoding, folder)


def load_stopping(folder):
    with reading(folder):
        return json.loads(Path(folder, "stopping.json").read_text())


def rows_of_the_table(cfg, base_path, assistants):
    """{name: (checkpoint of the assistant or None, how it differs from the default)}."""
    return {
        "Human alone, no round limit": (None, {"rounds": UNLIMITED_TOKENS // cfg.turn_tokens + 1}),
        "Human alone": (None, {}),
        "Base": (base_path, {}),
        "Base-10": (base_path, {"max_tokens": 10}),
        "Base-20": (base_path, {"max_tokens": 20}),
        f"Base stopped at {cfg.eta:g} bits": (base_path, {"max_cost": cfg.eta}),
        **{name: (path, {}) for name, path in assistants.items()},
        "Base, knows the goal": (base_path, {"knows_goal": True}),
    }


def play_row(cfg, name, path, options, base_path, base, encoding, problems):
    """One row of the table: the episodes of one assistant on every problem, played or reused."""
    inputs = {"base": base_path.name, "assistant": path and path.name, "problems": fingerprint(
        [dataclasses.astuple(problem) for problem in problems]),
        **settings(cfg, *SAMPLING, *GAME), **options}
    return load_episodes(stage(cfg, f"row {name}", inputs, lambda folder: play_and_judge(
        cfg, name, path, options, base, encoding, problems, folder)))


def play_and_judge(cfg, name, path, options, base, encoding, problems, folder):
    """The game on every problem, then the judge on what came of it. Writes episodes.json."""
    human = Human(base, token_nll, functools.partial(simhuman.JUDGING[cfg.judging], tau=cfg.tau),
                  cfg.turn_tokens, cfg.temperature, cfg.top_p)
    options = {"max_tokens": cfg.max_suggestion, "rounds": cfg.rounds, **options}
    rounds, assistant = options.pop("rounds"), None
    if path:
        assistant = Assistant(load_checkpoint(path, base.device)[0], temperature=cfg.temperature,
                              top_p=cfg.top_p, **options)
    episodes = simhuman.play([encoding.encode_ordinary(problem.statement) for problem in problems],
                             human, assistant, rounds, encoding.eot_token,
                             torch_generator(cfg, f"game of {name}", base.device), name)
    simhuman.judge_episodes(episodes, problems, encoding.decode)
    write_text(folder / "episodes.json",
               json.dumps([dataclasses.asdict(episode) for episode in episodes]) + "\n")


def load_episodes(folder):
    with reading(folder):
        return [simhuman.Episode(**{**row, "turns": [simhuman.Turn(**t) for t in row["turns"]]})
                for row in json.loads(Path(folder, "episodes.json").read_text())]


def write_transcripts(cfg, episodes, problems, encoding):
    """The first problem's episode with each assistant, as a person reads it."""
    os.makedirs(Path(cfg.out, "transcripts"), exist_ok=True)
    for name, row in episodes.items():
        text = simhuman.transcript(row[0], problems[0].statement,
                                   encoding.decode)
        write_text(Path(cfg.out, "transcripts", f"{slug(name)}.txt"), text)


# ------------------------------------------------------------------- the table and the claims

# The paper's means over its three assistants, of Pass@1 and DPR. Human Gemma-3-27B-it; for SFT-RAND
# Llama-3.3-70B-Instruct, the one human with which the paper has that row. No Base-20 in simulation.
PAPER = {"SFT-10": {"Empower": (0.175, 0.151), "baseline": (0.088, 0.076)},
         "SFT-20": {"Empower": (0.175, 0.151), "baseline": (0.081, 0.069)},
         "SFT-RAND": {"Empower": (0.250, 0.195), "baseline": (0.138, 0.097)},
         "Base-10": {"Empower": (0.175, 0.151), "baseline": (0.072, 0.064)}}


def summarize(name, episodes, cfg):
    """One row of the table; all counts are means over problems, ratios are pooled."""
    n, turns = len(episodes), sum(len(episode.turns) for episode in episodes)
    offered = sum(episode.offered for episode in episodes)
    read = sum(episode.tokens_read for episode in episodes)
    row = {"name": name}
    row["pass@1"], row["pass@1_se"] = simhuman.pass_at_1(episodes)
    row["accept_ratio"], row["accept_ratio_se"] = simhuman.accept_ratio(episodes) \
        if offered else (None, None)
    row["dpr"], row["dpr_se"] = simhuman.discounted_pass_rate(
        episodes, cfg.gamma, cfg.alpha, cfg.beta)
    row["tokens_read"] = read / n
    row["tokens_written"] = sum(episode.tokens_written for episode in episodes) / n
    row["suggestions"] = offered / n
    row["suggestion_length"] = read / offered if offered else None
    row["silent_share"] = 1 - offered / turns
    return row


def claims(cfg, episodes):
    """Empower minus each baseline, with a 95% interval: does the paper's claim hold here?"""
    rng, found = np.random.default_rng(derived_seed(cfg, "bootstrap")), []
    ours = episodes[f"Empower ({cfg.eta:g})"]
    values = {"pass@1": lambda episode: float(episode.passed),
              "dpr": lambda episode: simhuman.discounted(episode, cfg.gamma, cfg.alpha, cfg.beta)}
    for baseline in ("SFT-10", "SFT-20", "SFT-RAND", "Base-10", "Base-20"):
        for k, (metric, value) in enumerate(values.items()):
            a, b = ([value(e) for e in row] for row in (ours, episodes[baseline]))
            difference, low, high = simhuman.paired_difference(a, b, rng)
            paper = PAPER.get(baseline)
            found.append({
                "baseline": baseline, "metric": metric, "difference": difference,
                "low": low, "high": high, "holds": bool(low > 0),
                "gain": difference / np.mean(b) if np.mean(b) else None,
                "paper_gain": paper and paper["Empower"][k] / paper["baseline"][k] - 1})
    return found


def markdown(header, rows):
    """An aligned table that reads as well in a terminal as in a README."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    line = lambda row: "| " + " | ".join(
        [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) + " |"
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def report(results):
    """The tables of a run as one text."""
    with_error = lambda row, key: ("-" if row[key] is None else
                                   f"{row[key]:.3f} ± {row[key + '_se']:.3f}")
    number = lambda value: "-" if value is None else f"{value:.1f}"
    percent = lambda value: "-" if value is None else f"{100 * value:+.0f}%"
    rows = [[row["name"], with_error(row, "pass@1"), with_error(row, "accept_ratio"),
             with_error(row, "dpr"), number(row["tokens_read"]), number(row["tokens_written"]),
             number(row["suggestions"]), number(row["suggestion_length"]),
             f"{row['silent_share']:.2f}"] for row in results["rows"]]
    stops = [[stop["name"], number(stop["target_length"]), number(stop["suggestion_length"]),
              "yes" if abs(stop["suggestion_length"] - stop["target_length"])
              <= 0.2 * stop["target_length"] else "NO",
              f"{stop['silent_targets']:.2f}", f"{stop['silent_suggestions']:.2f}"]
             for stop in results["stopping"]]
    found = [[f"{claim['baseline']}, {claim['metric']}", f"{claim['difference']:+.3f}",
              f"{claim['low']:+.3f} to {claim['high']:+.3f}", "yes" if claim["holds"] else "NO",
              percent(claim["gain"]), percent(claim["paper_gain"])] for claim in results["claims"]]
    n = results["config"]["held_out_problems"]
    return "\n\n".join([
        f"The game on {n} unseen problems. Pass@1: share solved; accept ratio: accepted over "
        "offered\nsuggestions; DPR: discounted pass rate; ± one standard error over problems. "
        "Then means over\nproblems of tokens read, tokens written and suggestions; tokens a "
        "suggestion; share of silent turns.",
        markdown(["assistant", "Pass@1", "accept ratio", "DPR", "read", "written", "suggestions",
                  "length", "silent"], rows),
        "Did the assistants learn to stop? Tokens that the rule asks for, tokens written, and the "
        "share\nof each that is empty, on programs held out of fine-tuning.",
        markdown(["assistant", "asked", "written", "within 20%", "asked empty", "written empty"],
                 stops),
        f"Empower (eta = {results['config']['eta']:g}) minus each baseline, with a 95% interval "
        "(paired bootstrap over\nproblems). It holds where the interval is above zero. Gains are "
        "relative; the paper's are means\nover its three assistants.",
        markdown(["against", "difference", "95% interval", "holds", "our gain", "paper's gain"],
                 found)])


# ------------------------------------------------------------------- the experiment


def run(cfg):
    """The paper's experiment in miniature, from nothing to the tables; returns what it found.

    Everything lies in cfg.out: results.json, transcripts/, and under stages/ the checkpoints, the
    human's programs and the episodes.
    """
    begin, device = time.time(), announce(cfg)

    # Section 5.1: problems; and one language model, which is pi_H, pi_hat and Base.
    contest = make_contest(cfg)
    base_path, base, encoding = base_model(cfg, contest, device)

    # Section 5.1: the human writes the training programs. Section 4.1: one state of each.
    programs_path = stage(
        cfg, "programs", {"base": base_path.name, **settings(cfg, *SAMPLING)},
        lambda folder: write_programs(cfg, base, encoding, contest, folder))
    programs = load_programs(programs_path)
    states = data.draw_states(numpy_generator(cfg, "states"),
                              [len(program["nll"]) for program in programs])

    print("\nThe human's first program; in ‹angles› what is not obvious without the problem's "
          f"statement:\n\n{mark_choices(programs[0], encoding, cfg.eta)}")

    # Section 4.2: the completions that each rule chooses, and an assistant fine-tuned on them.
    assistants = {}
    for name, rule in completion_rules(cfg).items():
        pairs = choose_completions(programs, states, encoding, rule,
                                   numpy_generator(cfg, "lengths"))
        inputs = {"base": base_path.name, "pairs": fingerprint(pairs),
                  **settings(cfg, *SAMPLING, "max_suggestion", "sft_batch", "sft_lr")}
        assistants[name] = stage(cfg, name, inputs, lambda folder: finetune(
            cfg, name, base, encoding, pairs, folder))

    # Section 3: the game, on problems of compositions that nobody has seen.
    episodes = {}
    for name, (path, options) in rows_of_the_table(cfg, base_path, assistants).items():
        episodes[name] = play_row(cfg, name, path, options, base_path, base, encoding,
                                  contest.held_out)

    # Section 5.2: the tables, and whether the claims hold.
    results = {"config": dataclasses.asdict(cfg), "environment": environment(device),
               "rows": [summarize(name, row, cfg) for name, row in episodes.items()],
               "stopping": [load_stopping(path) for path in assistants.values()],
               "claims": claims(cfg, episodes), "seconds": round(time.time() - begin)}
    write_transcripts(cfg, episodes, contest.held_out, encoding)
    write_text(Path(cfg.out, "results.json"), json.dumps(results, indent=2, allow_nan=False) + "\n")
    return results


def calibrate(cfg):
    """Chooses tau on development problems, by the two untrained rows alone; returns it.

    The accept ratios of Base and Base-10 shall come as near as they can (least squares) to the
    paper's, since the paper does not say how strict its human is.
    """
    device, tried = announce(cfg), {}
    contest = make_contest(cfg)
    base_path, base, encoding = base_model(cfg, contest, device)
    rows = rows_of_the_table(cfg, base_path, {})
    for tau in TAUS[cfg.judging]:
        at = dataclasses.replace(cfg, tau=tau)
        tried[tau] = [simhuman.accept_ratio(play_row(
            at, name, *rows[name], base_path, base, encoding, contest.dev))[0]
            for name in PAPER_ACCEPT_RATIOS]
    distance = lambda tau: math.dist(tried[tau], PAPER_ACCEPT_RATIOS.values())
    best = min(tried, key=distance)
    print(markdown(["tau", *PAPER_ACCEPT_RATIOS, "distance"], [
        [f"{tau:g}", *(f"{ratio:.3f}" for ratio in ratios), f"{distance(tau):.3f}"]
        for tau, ratios in tried.items()]))
    print(f"--judging {cfg.judging} --tau {best:g} is nearest to the paper's "
          f"{' and '.join(map(str, PAPER_ACCEPT_RATIOS.values()))}")
    return best


# ------------------------------------------------------------------- the command line


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
    return {"python": platform.python_version(), "torch": torch.__version__, "device": device,
            "threads": torch.get_num_threads(), "platform": platform.platform()}


def announce(cfg):
    """Opens the output folder, says what will be done and on what; returns the device."""
    device = pick_device(cfg.device)
    open_output(cfg.out)
    try:
        simhuman.check_judge()
    except RuntimeError as error:
        raise UserError(str(error)) from None
    with torch.device("meta"):
        model = GPT(gpt_config(cfg, cfg.vocab_size))
    print(f"Pre-train a GPT of {sum(p.numel() for p in model.parameters()):,} parameters, let the "
          f"human write {cfg.train_problems} programs, fine-tune {len(completion_rules(cfg))} "
          f"assistants\nand play {cfg.held_out_problems} unseen problems with each: about 8 "
          "minutes on 2 CPU cores, less where stages are reused.\n"
          f"Seed {cfg.seed}, device {device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, output in {cfg.out}")
    return device


def parse(argv):
    """The command line, one flag for each field of Config: (Config, calibrate or not)."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"empower.py: {message}; see --help\n")
    for field in dataclasses.fields(Config):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type,
                            default=field.default, help=field.metadata["help"])
    parser.add_argument("--calibrate", action="store_true",
                        help="choose tau on development problems, print the choice, and stop")
    arguments = vars(parser.parse_args(argv))
    return arguments.pop("calibrate"), Config(**arguments)


def main(argv=None):
    try:
        only_calibrate, cfg = parse(argv)
        if only_calibrate:
            calibrate(cfg)
        else:
            print("\n" + report(run(cfg)))
            print(f"\nresults.json, transcripts/ and every stage are in {cfg.out}")
    except UserError as error:
        print(f"empower.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"empower.py: {error}; finished stages are kept, run again when that is mended",
              file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nempower.py: interrupted; finished stages are kept, run again to go on",
              file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
