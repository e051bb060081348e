"""Real code and real models: the method of empower.py beyond its generated contest.

    python empower.py replay --corpus PATH [--model DIR]     the paper's rows, an author replayed
    python empower.py finetune --model DIR --corpus PATH --out DIR2
    python empower.py show FILE [--model DIR] [--at LINE:COL] [--svg FILE.svg]
    python empower.py suggest FILE:LINE:COL [--model DIR]

A corpus is a folder of .py files, one file, a JSONL file, or the word stdlib. A model is a folder
of Hugging Face's layout: Llama, Mistral, Qwen2 or Qwen3. A document begins with its family's BOS,
or with the end-of-text token that separates documents where there is none; what an assistant learns
ends with the family's stop token. Statements in a JSONL file are comments of the program, so the
scorer pi_hat reads them as well. Letters as in empower.py.
"""

import dataclasses
import html
import json
import math
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

import data
import simhuman
from checkpoint import read_text, write_text
from empower import (PRETRAINING, STOPPING, Experiment, Game, Settings, UserError, adamw,
                     check_stopping, choices, choose_completions, completion_rule, completion_rules,
                     conclude, describe, dpr_of, empower_length, fingerprint, gpt_config,
                     load_checkpoint, load_stage, marked, numpy_generator, open_output, pick_device,
                     play_row, pretrain, pretrained_here, python_generator, reading,
                     rows_of_the_table, save_tuned, score, setting, settings, slug, stage, table,
                     token_texts, train, train_assistants, with_verdict, write_transcripts)
from model import KVCache, extend, sample

CORPUS = "a folder of .py files, one file, a JSONL file, or the word stdlib"
FIELD = "the JSONL field that holds the code (default: it is found)"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPE = "of the checkpoint's weights: auto (the file's), float32 or bfloat16"
ETA = "threshold of Empower, bits (Section 5.1)"


# ------------------------------------------------------------------- what a person hands over


def handed_over(read, *arguments):
    """read(*arguments) of something that a person named; what is wrong with it is a UserError."""
    try:
        return read(*arguments)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None


def read_programs(cfg):
    """(programs to learn from, programs held out) of cfg.corpus, texts; says what was found.

    A small corpus keeps four fifths of its programs to learn from.
    """
    if not cfg.corpus:
        raise UserError(f"--corpus is missing: give {CORPUS}")
    texts, found = handed_over(data.read_corpus, cfg.corpus, cfg.field or None)
    print(found)
    return handed_over(data.split_corpus, texts, min(cfg.held_out, len(texts) // 5),
                       python_generator(cfg, "split"))


def given_model(cfg, device):
    """The checkpoint that is named with --model."""
    if cfg.dtype not in DTYPES:
        raise UserError(f"--dtype is {cfg.dtype!r}: choose {', '.join(DTYPES)}")
    return handed_over(load_checkpoint, cfg.model, device, DTYPES[cfg.dtype])


def check_context(cfg, limit, round_tokens):
    """A piece, the token before it and one round behind it have to fit into a model's context."""
    room = limit - 1 - round_tokens
    if room < 16:
        raise UserError(f"--max-suggestion is {cfg.max_suggestion}, and the model reads {limit} "
                        "tokens in all: give less")
    if cfg.context > room:
        raise UserError(f"--context is {cfg.context}, and the model reads {limit} tokens: give at "
                        f"most {room}, since a suggestion has to follow")


def cut(encoding, texts, size):
    """The pieces of all texts: lists of at most `size` token ids."""
    return [piece for text in texts for piece in data.pieces(encoding, text, size)]


def kept_costs(folder, base, pieces, together=1024):
    """The costs in bits of each piece, scored or, where an earlier run has kept them, read.

    They are kept in `folder` for so many pieces together: what was scored is not scored again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    costs = []
    for k in range(0, len(pieces), together):
        chunk, path = pieces[k:k + together], folder / f"nll-{k}.npy"
        if not path.exists():
            with open(f"{path}.tmp", "wb") as file:
                np.save(file, np.concatenate(score(base.model, chunk, base.encoding.start)))
            os.replace(f"{path}.tmp", path)
        with reading(path):
            nll, ends = np.load(path), np.cumsum([len(ids) for ids in chunk])
            if len(nll) != ends[-1]:
                raise ValueError(f"{len(nll)} costs of {ends[-1]} tokens")
            costs += np.split(nll, ends[:-1])
    return costs


# ------------------------------------------------------------------- replay


@dataclasses.dataclass(frozen=True)
class ReplayConfig(Experiment):
    """Every setting of the experiment on real code, with a replayed author."""

    out: str = setting("out/replay", "folder for everything that a run makes")
    corpus: str = setting("", CORPUS)
    field: str = setting("", FIELD)
    model: str = setting("", "a checkpoint folder (default: a small GPT is pre-trained)")
    dtype: str = setting("auto", DTYPE)
    held_out: int = setting(100, "programs of the results, at most a fifth of the corpus", 1)
    context: int = setting(None, "tokens of a piece; longer programs are cut into pieces "
                                 "(default: 256 for the small GPT, 1024 for --model)", 16)
    train_programs: int = setting(1600, "pieces to learn from, at most; one state of each", 10)

    vocab_size: int = setting(2048, "tokens of the vocabulary at most, all 256 bytes among them",
                              257)
    width: int = setting(192, "hidden size of the model", 32)
    layers: int = setting(4, "layers of the model", 1)
    pretrain_tokens: int = setting(1_000_000, "tokens of pre-training; the corpus is repeated", 1)
    sft_batch: int = setting(8, "examples an update of fine-tuning; larger ones learn no stop", 1)
    sft_lr: float = setting(None, "learning rate of fine-tuning (default: Muon at 0.01 for the "
                                  "small GPT, AdamW at 1e-5 for --model)", 0)
    temperature: float = setting(0.0, "sampling of assistants; 0 takes the likeliest token", 0)

    def __post_init__(self):
        for name, ours, given in (("context", 256, 1024), ("sft_lr", 0.01, 1e-5)):
            if getattr(self, name) is None:  # frozen for everybody else
                object.__setattr__(self, name, given if self.model else ours)
        super().__post_init__()


def replay(cfg):
    """The paper's rows on code without tests: what does each assistant save its author?

    Programs are split by file. The assistants learn from one part; on the other, the author wants
    exactly the program that was written. Everything lies in cfg.out, as in `empower.run`.
    """
    begin, device = time.time(), pick_device(cfg.device)
    train_texts, held_out_texts = read_programs(cfg)
    if len(held_out_texts) < 2:
        raise UserError(f"{cfg.corpus} has {len(train_texts) + len(held_out_texts)} programs: a "
                        "replay needs at least 10, a fifth of which are held out")
    base = given_model(cfg, device) if cfg.model else None
    shape = base.model.config if base else gpt_config(cfg, cfg.vocab_size)
    longest = max(cfg.max_suggestion, 20)  # that of Base-20
    check_context(cfg, shape.max_position_embeddings, longest + cfg.turn_tokens)
    open_output(cfg.out)
    print(f"Fine-tune {len(completion_rules(cfg))} assistants and replay {len(held_out_texts)} "
          "programs with each" + (": the bars say how long it takes." if base else
                                  ", after pre-training a small GPT on the other programs:\n"
                                  "15 to 20 minutes on 2 CPU cores, less where stages are reused."))
    base = base or pretrain_on(cfg, train_texts, device)
    describe(cfg, base.model, device)

    # Section 4.1: programs that people wrote; pi_hat says what each token costs.
    pieces = cut(base.encoding, train_texts, cfg.context)
    pieces = python_generator(cfg, "pieces").sample(pieces, min(len(pieces), cfg.train_programs))
    costs = kept_costs(Path(cfg.out, "stages", f"costs-{fingerprint([base.name, pieces])}"),
                       base, pieces)
    print(f"  {np.concatenate(costs).mean():.2f} bits a token on {len(pieces)} pieces to learn "
          "from")

    # Section 4.2: the assistants.
    def tune(model, examples, rng, label):
        train(model, examples, cfg.sft_batch, adamw(model.parameters(), cfg.sft_lr), rng, label,
              micro_batch=4, clip=1.0)

    assistants = train_assistants(cfg, base, list(zip(pieces, costs)),
                                  tune if cfg.model else pretrained_here(cfg),
                                  completion_rules(cfg))

    # Section 3: the game, with an author who is replayed from the beginning of a piece to its end.
    goals, ends = drawn_goals(cfg, base, held_out_texts)
    game = Game(simhuman.Author(cfg.turn_tokens, ends), goals, cfg.context, all_right,
                {"programs": fingerprint(goals), "ends": ends})
    episodes = {name: play_row(cfg, name, row, base, game)
                for name, row in rows_of_the_table(cfg, base, assistants).items()}
    write_transcripts(cfg, episodes, "", base.encoding.decode)
    # All rows write the same programs: over their mean length, the pooled share is a mean.
    models = {"base": base.folder, **assistants}
    return conclude(cfg, begin, device, models, episodes, {
        "share saved": lambda episode: episode.tokens_accepted / np.mean(ends),
        "dpr": dpr_of(cfg)})


def drawn_goals(cfg, base, texts):
    """One piece of each program, drawn at random: (its tokens and what follows them, its lengths).

    What follows is there so that a suggestion which is right beyond the end is not called wrong.
    """
    rng, goals, ends = numpy_generator(cfg, "goals"), [], []
    for text in texts:
        pieces = data.pieces(base.encoding, text, cfg.context)
        k = int(rng.integers(len(pieces)))
        following = [i for piece in pieces[k + 1:] for i in piece]
        goals.append(pieces[k] + following[:cfg.max_suggestion])
        ends.append(len(pieces[k]))
    unseen = np.concatenate(score(base.model, [goal[:end] for goal, end in zip(goals, ends)],
                                  base.encoding.start))
    print(f"  {unseen.mean():.2f} bits a token on a piece of each of {len(goals)} programs held "
          f"out, of {np.mean(ends):.0f} tokens")
    return goals, ends


def all_right(episodes):
    """The judge of replayed programs: what is finished is the program that its author wanted."""
    for episode in episodes:
        episode.passed = episode.finished


def pretrain_on(cfg, texts, device):
    """A small GPT that has read the programs as often as cfg.pretrain_tokens allow, or reused."""
    def make(folder):
        encoding, documents = data.train_tokenizer(texts, cfg.vocab_size), []
        for text in texts:
            pieces = [[encoding.start, *ids] for ids in data.pieces(encoding, text, cfg.context)]
            pieces[-1].append(encoding.stop)  # there the program ends, and nowhere else
            documents += pieces
        rng, epochs = python_generator(cfg, "documents"), cfg.pretrain_tokens / sum(
            map(len, documents))
        shuffled = [ids for _ in range(math.ceil(epochs))
                    for ids in rng.sample(documents, len(documents))]
        pretrain(cfg, encoding, shuffled[:math.ceil(epochs * len(documents))], device, folder)

    inputs = {"texts": fingerprint(texts), **settings(
        cfg, "context", "pretrain_tokens", *PRETRAINING)}
    return load_stage(stage(cfg, "base", inputs, make), device)


# ------------------------------------------------------------------- finetune


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Settings):
    """Every setting of fine-tuning a checkpoint on a person's own code."""

    out: str = setting("", "folder of the new checkpoint")
    seed: int = setting(0, "feeds all randomness, by separate generators")
    model: str = setting("", "the checkpoint folder to begin with: Llama, Mistral, Qwen2 or Qwen3")
    dtype: str = setting("auto", DTYPE + "; weights are trained in float32")
    corpus: str = setting("", CORPUS)
    field: str = setting("", FIELD)
    rule: str = setting("empower", "what the assistant learns: empower, sft-N or sft-rand")
    eta: float = setting(0.32, ETA, 0)
    held_out: int = setting(20, "programs on which its stopping is checked, at most a fifth of all",
                            1)
    context: int = setting(1024, "tokens of a piece; longer programs are cut into pieces", 16)
    lr: float = setting(1e-5, "AdamW's learning rate", 0)
    batch: int = setting(16, "examples an update", 1)
    micro_batch: int = setting(4, "examples at a time; their gradients are added up", 1)
    clip: float = setting(1.0, "longest gradient of an update", 0)
    recompute: bool = setting(False, "activation checkpointing: less memory, a third more time")
    save_minutes: float = setting(10, "minutes after which the state of training is kept again", 0)
    max_suggestion: int = setting(100, "cap on a suggestion in the check of its stopping", 1)


def finetune(cfg):
    """Section 4.2 on a person's own code and checkpoint: costs, completions, one epoch of SFT.

    Until it is whole the new checkpoint lies in OUT.partial, where the same command goes on.
    """
    rule, device = completion_rule(cfg.rule, cfg.eta), pick_device(cfg.device)
    for name in ("model", "out"):
        if not getattr(cfg, name):
            raise UserError(f"--{name} is missing: give a folder")
    train_texts, held_out_texts = read_programs(cfg)
    base = given_model(cfg, device)
    check_context(cfg, base.model.config.max_position_embeddings, cfg.max_suggestion)
    inputs = {"base": base.name, "texts": fingerprint([train_texts, held_out_texts]), **settings(
        cfg, "seed", "dtype", "rule", "eta", "context", "lr", "batch", "clip")}
    out, folder = Path(cfg.out), Path(f"{cfg.out.rstrip('/')}.partial")
    if begun_before(out, inputs):
        print(f"{out} is finished: nothing is left to do")
        return
    print(f"Score {len(train_texts)} programs, choose completions by {cfg.rule} and train one "
          f"epoch, {'going on' if begun_before(folder, inputs) else 'begun'} in {folder}: the "
          "bars say how long it takes.")
    describe(cfg, base.model, device)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "inputs.json", json.dumps(inputs, indent=2) + "\n")
    pairs = pairs_of(cfg, base, train_texts, rule, "train", folder)
    held_out = pairs_of(cfg, base, held_out_texts, rule, "held-out", folder)
    train_checkpoint(cfg, base, pairs, folder)
    if held_out:
        print("Did it learn to stop? On pieces held out:\n\n" + table(with_verdict([check_stopping(
            cfg.rule, base.model, base.encoding, held_out[:200], cfg.max_suggestion)]),
            STOPPING) + "\n")
    os.replace(folder, out)
    for path in (*out.glob("progress.pt*"), *out.glob("costs-*")):  # only now nothing needs them
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"The checkpoint is in {out}. Try: python empower.py suggest --model {out} FILE:LINE:COL")


def train_checkpoint(cfg, base, pairs, folder):
    """Trains the base model itself on (prefix, completion) pairs and saves it in the folder.

    The weights are float32 while they learn, since steps of 1e-5 would be lost in bfloat16.
    """
    dtype, encoding, model = base.model.lm_head.weight.dtype, base.encoding, base.model.float()
    model.recompute = cfg.recompute
    examples = [([encoding.start, *prefix, *completion, encoding.stop], 1 + len(prefix))
                for prefix, completion in pairs]
    losses = train(model, examples, cfg.batch, adamw(model.parameters(), cfg.lr),
                   python_generator(cfg, "batches"), cfg.rule, cfg.micro_batch, cfg.clip,
                   (folder / "progress.pt", 60 * cfg.save_minutes))
    print(f"  {len(losses)} updates; loss from {np.mean(losses[:10]):.3f} to "
          f"{np.mean(losses[-10:]):.3f} nats a token (means of ten)")
    save_tuned(model, dtype, base, folder)


def begun_before(folder, inputs):
    """Whether this very work is in the folder; another's there is an error, and is left alone."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / "inputs.json").read_text())
    except (OSError, ValueError):
        found = None
    if found != inputs:
        raise UserError(f"{folder} holds something else, or was begun with other settings: choose "
                        "another --out")
    return True


def pairs_of(cfg, base, texts, rule, purpose, folder):
    """(prefix, completion) of one state of each piece of the texts; costs are kept in `folder`."""
    pieces = cut(base.encoding, texts, cfg.context)
    if not pieces:
        return []
    costs = kept_costs(folder / f"costs-{purpose}", base, pieces)
    states = data.draw_states(numpy_generator(cfg, f"states {purpose}"), list(map(len, pieces)))
    pairs = choose_completions(zip(pieces, costs), states, rule,
                               numpy_generator(cfg, f"lengths {purpose}"))
    lengths = np.array([len(completion) for _, completion in pairs])
    print(f"  {purpose}: {len(pairs):,} pieces of {sum(map(len, pieces)):,} tokens in all, "
          f"{np.concatenate(costs).mean():.2f} bits each; completions of {lengths.mean():.1f} "
          f"tokens, {(lengths == 0).mean():.0%} empty")
    if (lengths == 0).mean() > 0.9 and purpose == "train":
        print("  Nearly nothing is obvious to this model here: it will learn to be silent. Take a "
              "model of such code, or a larger --eta.")
    return pairs


# ------------------------------------------------------------------- show


@dataclasses.dataclass(frozen=True)
class ShowConfig(Settings):
    """What `show` draws."""

    file: str = setting("", "the program", positional=True)
    model: str = setting("", "a checkpoint folder (default: the small GPT pre-trained in --out)")
    dtype: str = setting("auto", DTYPE)
    at: str = setting("every", "the state: LINE:COL, counted from 1, or every")
    eta: float = setting(0.32, ETA, 0)
    svg: str = setting("", "a file to which the same picture is written")


def show(cfg):
    """Figure 1 on a person's own code: tokens shaded by cost, a bar where Algorithm 1 stops."""
    text = read_source(cfg.file)
    place = None if cfg.at == "every" else offset(text, cfg.at, cfg.file)
    base = model_at_hand(cfg, "base")
    ids, limit = base.encoding.encode_ordinary(text), base.model.config.max_position_embeddings
    if not ids:
        raise UserError(f"{cfg.file} is empty: show another file")
    if len(ids) >= limit:
        raise UserError(f"{cfg.file} has {len(ids)} tokens, and the model reads from 1 to "
                        f"{limit - 1}: show a part of it")
    [nll] = score(base.model, [ids], base.encoding.start)
    texts = token_texts(base.encoding, ids)
    plain, marks, said = (picture_of_all(texts, nll, cfg.eta) if place is None else
                          picture_at(texts, nll, cfg.eta, place))
    said += f" (eta = {cfg.eta:g} bits)."
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print((shaded(texts, nll, marks) if coloured else plain).rstrip("\n") + f"\n\n{said}")
    if cfg.svg:
        try:
            write_text(cfg.svg, svg(texts, nll, marks, said))
        except OSError as error:
            raise UserError(f"cannot write {cfg.svg} ({error.strerror}): name another "
                            "file") from None


def picture_of_all(texts, nll, eta):
    """(plain text, marks {index: mark}, what to say) of a program that both write by turns."""
    human = choices(nll, eta)
    return marked(texts, human), {k: "┃" for k in human}, (
        f"The assistant would have written {len(texts) - len(human)} of {len(texts)} tokens, and "
        f"the human {len(human)}, one where each suggestion stops")


def picture_at(texts, nll, eta, place):
    """The same of one state: the last whole token before `place`, a number of characters."""
    n = int(np.searchsorted(np.cumsum([len(text) for text in texts]), place, side="right"))
    while n and not texts[n - 1]:
        n -= 1  # not within a character of several tokens
    stop = n + empower_length(nll[n:], eta)
    completion, before = "".join(texts[n:stop]), "".join(texts[:n])
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    said = f"At {line}:{column} the assistant would have written " + (
        f"{completion!r}, {nll[n:stop].sum():.2f} bits" if completion else "nothing") + (
        f"; the next token costs {nll[stop]:.2f}" if stop < len(texts) else "")
    marks = {n: "▸", stop: "┃"} if stop > n else {n: "▸┃"}
    return f"{before}▸{completion}┃{''.join(texts[stop:])}", marks, said


def read_source(path):
    """The text of a program that a person names, with \\n as its line ends."""
    try:
        text = read_text(Path(path)).replace("\r\n", "\n")
    except OSError as error:
        raise UserError(f"cannot read {path or 'FILE'} ({error.strerror}): give a text file") \
            from None
    except ValueError as error:
        raise UserError(str(error)) from None
    if len(text) > data.LONGEST:
        raise UserError(f"{path} has {len(text):,} characters: give at most {data.LONGEST:,}")
    return text


def offset(text, place, file):
    """The number of characters before LINE:COL, both from 1.

    Example: "ab\\ncd\\n", "2:2" -> 4, between c and d.
    """
    match, lines = re.fullmatch(r"(\d+):(\d+)", place), text.split("\n")
    line, column = map(int, match.groups()) if match else (0, 0)
    if not 1 <= line <= len(lines):
        raise UserError(f"{place!r} is no place in {file}, which has {len(lines)} lines: give "
                        "LINE:COL, both from 1")
    if not 1 <= column <= len(lines[line - 1]) + 1:
        raise UserError(f"line {line} of {file} has {len(lines[line - 1])} characters, and the "
                        f"column is {column}: give 1 to {len(lines[line - 1]) + 1}")
    return sum(len(before) + 1 for before in lines[:line - 1]) + column - 1


def model_at_hand(cfg, *kinds):
    """The checkpoint of --model, or one that a run has left in --out, of the first kind there is.

    That of the last finished run, as its results.json says, else the first that was made: another
    seed or a sweep may have left others beside it.
    """
    device = pick_device(cfg.device)
    if cfg.model:
        return given_model(cfg, device)
    stages, results = Path(cfg.out, "stages"), Path(cfg.out, "results.json")
    of_run = {}
    if results.exists():
        with reading(results):
            of_run = json.loads(results.read_text()).get("models", {})
    for kind in kinds:
        found = [stages / folder for name, folder in of_run.items()
                 if slug(name).startswith(kind) and (stages / folder).exists()]
        found += sorted((path for path in stages.glob(f"{kind}-*") if re.fullmatch(
            rf"{kind}(-[\d.]+)?-[0-9a-f]{{10}}", path.name)), key=lambda path: path.stat().st_mtime)
        if found:
            print(f"empower.py: using {found[0]}", file=sys.stderr)
            return load_stage(found[0], device)
    raise UserError(f"there is no small GPT in {cfg.out}: run python empower.py first, which makes "
                    "one, or name a checkpoint with --model")


# From so many bits on a token is shaded so: xterm's colour, and the same colour in SVG.
SHADES = [(0.1, 230, "#ffffd7"), (0.5, 229, "#ffffaf"), (1, 222, "#ffd787"), (2, 215, "#ffaf5f"),
          (4, 209, "#ff875f"), (8, 203, "#ff5f5f")]


def shade(bits):
    """(xterm colour, SVG colour) of a token, None for one that is all but free."""
    return next((colours for least, *colours in reversed(SHADES) if bits >= least), None)


def shaded(texts, nll, marks):
    """The picture for a terminal; colours end before a newline and begin anew behind it."""
    marks, out = {k: f"\033[1;31m{mark}\033[0m" for k, mark in marks.items()}, []
    for k, (text, bits) in enumerate(zip(texts, nll)):
        begin = f"\033[30;48;5;{shade(bits)[0]}m" if shade(bits) else ""
        end = "\033[0m" if begin else ""
        out += [marks.get(k, ""), begin, text.replace("\n", f"{end}\n{begin}"), end]
    return "".join(out) + marks.get(len(texts), "")


NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # as a form feed


def svg(texts, nll, marks, caption):
    """The picture for a page: a grid of characters of 8 x 18 points, and what the shades mean."""
    shapes, behind, row, column, widest = [], [], 0, 0, len(caption)

    def draw(text, fill=None):
        text = NOT_XML.sub("\ufffd", text)
        x, y, size = 8 * column, 18 * row, 8 * len(text)
        if fill and text:
            behind.append(f'<rect x="{x}" y="{y}" width="{size}" height="18" fill="{fill}"/>')
        if text.strip():
            text = html.escape(text, quote=False)
            shapes.append(f'<text x="{x}" y="{y + 13}" textLength="{size}">{text}</text>')

    for k, (text, bits) in enumerate(zip([*texts, ""], [*nll, 0])):
        for mark in marks.get(k, ""):
            colour = {"┃": "#cc0000", "▸": "#0000cc"}[mark]
            shapes.append(f'<rect x="{8 * column - 1}" y="{18 * row}" width="2" height="18" '
                          f'fill="{colour}"/>')
        for j, part in enumerate(text.expandtabs(4).split("\n")):
            row, column = (row + 1, 0) if j else (row, column)
            draw(part, shade(bits) and shade(bits)[1])
            column += len(part)
            widest = max(widest, column)
    row, column = row + 1 + (column > 0), 0
    draw(caption)
    row += 1
    for least, _, colour in SHADES:
        draw(f"from {least:g} bits".ljust(14), colour)
        column += 14
    width, height = 8 * max(widest, column) + 16, 18 * row + 30
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -6 {width} {height}" '
        f'width="{width}" height="{height}" font-family="monospace" font-size="13" '
        'xml:space="preserve"><rect x="-8" y="-6" width="100%" height="100%" fill="white"/>',
        *behind, *shapes, "</svg>\n"])


# ------------------------------------------------------------------- suggest


@dataclasses.dataclass(frozen=True)
class SuggestConfig(Settings):
    """What `suggest` writes."""

    place: str = setting("", "FILE:LINE:COL, counted from 1", positional=True)
    model: str = setting("", "a checkpoint folder (default: the assistant Empower (0.32) in --out)")
    dtype: str = setting("auto", DTYPE)
    eta: float = setting(None, "for a model that has not learnt to stop: it stops before its text "
                               "costs more than this, bits", 0)
    max_suggestion: int = setting(100, "cap on the suggestion, tokens", 1)


def suggest(cfg):
    """The suggestion of an assistant at a place in a file, and nothing else, on stdout."""
    file, *place = cfg.place.rsplit(":", 2)
    if len(place) < 2:
        raise UserError(f"{cfg.place!r} is no place: give FILE:LINE:COL, as in program.py:3:1")
    text = read_source(file)
    text = text[:offset(text, ":".join(place), file)]
    model, encoding, *_ = model_at_hand(cfg, "empower-0.32", "empower")
    room = model.config.max_position_embeddings - cfg.max_suggestion - 1
    if room < 1:
        raise UserError(f"--max-suggestion is {cfg.max_suggestion}, and the model reads "
                        f"{model.config.max_position_embeddings} tokens: give less")

    ids = encoding.encode_ordinary(text)[-room:]
    healed = heal(model, encoding, ids, cfg.eta)
    if healed is None:  # the cursor is within a choice: nothing is obvious
        return
    ids, typed = healed
    [new], _ = sample(model, KVCache(model, 1), [[encoding.start, *ids]], cfg.max_suggestion,
                      encoding.stops, temperature=0,
                      max_cost=math.inf if cfg.eta is None else cfg.eta)
    suggestion = encoding.decode_bytes(ids[-1:] + new)[typed:]
    print(suggestion.decode(errors="replace"), end="\n" if sys.stdout.isatty() else "")


@torch.no_grad()
def heal(model, encoding, ids, eta):
    """The last token before the cursor, chosen anew among all that begin with its text.

    What was typed may be the beginning of a longer token: "def go(" of a model that writes "():"
    as one. Returns (ids, how many bytes of the last one are typed already), or None where no such
    token has all but eta bits (0.32 where None) of their probability.
    """
    if not ids:
        return ids, 0
    typed = encoding.decode_single_token_bytes(ids[-1])
    fits = torch.tensor([i for i in map(encoding.encode_single_token, (
        token for token in encoding.token_byte_values() if token.startswith(typed)))
        if i < encoding.size], device=model.device)
    texts = [[encoding.start, *ids[:-1]]]
    p = extend(model, KVCache(model, 1), texts)[0, -1, fits].float().softmax(-1)
    if p.max() < 2 ** -(0.32 if eta is None else eta):
        return None
    return [*ids[:-1], int(fits[p.argmax()])], len(typed)


COMMANDS = {"replay": (ReplayConfig, replay), "finetune": (FinetuneConfig, finetune),
            "show": (ShowConfig, show), "suggest": (SuggestConfig, suggest)}
