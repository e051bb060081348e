"""python empower.py finetune --model DIR --corpus PATH --out DIR2: an assistant for your code."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import torch

from empower import choose_completions, empower, score, sft, sft_example, sft_rand
from model import GPT
from realcode import all_states, parallel
from realcode.all_states import all_states_example, lengths_in_every_state
from realcode.checkpoints import save_checkpoint
from realcode.corpus import CORPUS, FIELD, STATEMENTS_FLAG, cut, kept_costs, read_programs
from realcode.gguf_file import is_gguf
from realcode.given import DTYPE, ETA, check_context, given_model
from realcode.lora import add_lora, merge_lora, save_adapter
from realcode.memory import LABELS, available_bytes, training_bytes
from realcode.pretrained import new_model
from realcode.training import Progress, recomputing, train_and_save
from simhuman import Assistant
from support.cli import (UserError, check_ranges, derived_seed, describe, flag, numpy_generator,
                         only, python_generator, torch_generator)
from support.digest import fingerprint
from support.files import locked, read_json, read_text, remove_leftovers, write_text
from support.optim import adamw
from support.report import STOPPING, check_stopping, counted, table, with_learned


CHECK = "check.txt"  # in the folder of the checkpoint: what was found
NOT_LEARNED = ("It has not learned to stop as the rule asks: give more programs, --all-states or a "
               "larger --lr; or suggest with --eta.")
WORK = "work"        # in it, while it is unfinished: costs, and the state of the training


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting for fine-tuning a checkpoint on your own code."""

    out: str = flag("", "folder of the new checkpoint")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    seed: int = flag(0, "feeds all randomness, by separate generators")
    model: str = flag("", "the checkpoint to start from, a folder or GGUF file: Llama, Mistral, "
                          "Qwen2 or Qwen3")
    dtype: str = flag("auto", DTYPE + "; weights that are trained are float32, and "
                               "saved as such, but with --lora merged into the others' type")
    corpus: str = flag("", CORPUS)
    field: str = flag("", FIELD)
    statements: bool = flag(False, STATEMENTS_FLAG)
    rule: str = flag("empower", "what the assistant learns: empower, sft-N or sft-rand; or whole, "
                                "all of each piece, which adapts the model to your code and does "
                                "not teach it to stop")
    eta: float = flag(0.32, ETA, 0)
    all_states: bool = flag(False, "learn the completions of every state of a piece at once, in "
                                   "place of one state drawn (Section 4.1): for few programs")
    held_out: int = flag(20, "programs held out to check what was learned, at most a fifth of "
                             "all; if none can be, a fifth of the pieces is", 1)
    context: int = flag(1024, "tokens of a piece; longer programs are cut into pieces", 16)
    lora: int = flag(0, "rank of low-rank updates (LoRA) with alpha twice the rank, for less "
                        "memory, e.g. 16; 0 trains all weights: the paper names no LoRA", 0)
    adapter: bool = flag(False, "with --lora, save only the updates, in PEFT's format; otherwise "
                                "they are merged, and rounded if the weights have 16 bits")
    lr: float = flag(None, "AdamW's learning rate (default: 1e-5, or 1e-4 with --lora)", 0)
    batch: int = flag(16, "examples per update", 1)
    micro_batch: int = flag(4, "examples at a time; their gradients are summed", 1)
    clip: float = flag(1.0, "maximum norm of an update's gradient; 0 for none", 0)
    recompute: bool = flag(False, "activation checkpointing: less memory, a third more time")
    save_minutes: float = flag(10, "minutes between saves of the training state", 0)
    max_suggestion: int = flag(100, "cap on a suggestion in the check of stopping", 1)

    def __post_init__(self):
        check_ranges(self)
        if self.rule == "whole" and self.all_states:
            raise UserError("--all-states is for a rule that stops: leave it out with --rule whole")
        if self.adapter and not self.lora:
            raise UserError("--adapter is for --lora: give its rank too, or leave it out")
        if self.adapter and is_gguf(self.model):
            raise UserError(f"PEFT cannot load an adapter over {self.model}: make it a folder with "
                            "python empower.py convert, or leave out --adapter")

    @property
    def rate(self):
        return (1e-4 if self.lora else 1e-5) if self.lr is None else self.lr


def rule_of(cfg):
    """(completion rule, about the most tokens that it asks for); the rule is None for whole pieces.

    A UserError if it asks for as many tokens as the check of stopping lets the assistant write.
    """
    if cfg.rule == "whole":
        return None, cfg.context
    if cfg.rule == "empower":
        return empower(cfg.eta), LABELS
    if cfg.rule == "sft-rand":
        rule, most = sft_rand(30), 30
    elif re.fullmatch("sft-[1-9][0-9]{0,8}", cfg.rule):
        most = int(cfg.rule.removeprefix("sft-"))
        rule = sft(most)
    else:
        raise UserError(f"--rule is {cfg.rule!r}: choose empower, sft-rand, whole or sft-N, as in "
                        "sft-10")
    if cfg.max_suggestion <= most:
        raise UserError(f"--max-suggestion is {cfg.max_suggestion}: to check how it stops, give "
                        f"more than the {most} tokens of --rule {cfg.rule}")
    return rule, most


def finetune(cfg):
    """Section 4.2 on your own code and checkpoint: costs, completions, one epoch of SFT.

    Until it is finished, the new checkpoint is in OUT.partial, where the same command resumes.
    torchrun shares the work among several processes, one for each GPU.
    """
    for name in ("model", "out"):
        if not getattr(cfg, name):
            raise UserError(f"--{name} is missing: give a folder"
                            + " or a GGUF file" * (name == "model"))
    out, partial = Path(cfg.out), Path(f"{cfg.out.rstrip('/')}.partial")
    if out.is_symlink() or os.path.ismount(out):
        raise UserError(f"--out {out} cannot be replaced by a finished folder: name a new folder, "
                        "not a link or a mount point")
    rule, most = rule_of(cfg)
    with parallel.processes(cfg.device) as device:
        texts, free = read_programs(cfg), parallel.by_rank_0(available_bytes, device)
        base = given_model(cfg, device)
        check_context(cfg, base.model.config.max_position_embeddings,
                      cfg.max_suggestion if rule else 0)
        inputs = {"base": base.name, "texts": fingerprint(texts), **vars(only(
            cfg, "seed", "dtype", "rule", "eta", "context", "all_states", "lora", "adapter",
            "rate", "batch", "clip")),
            "code": fingerprint([rule_of, cut, examples_and_held_out, tune, GPT])}
        with only_one(partial):  # another run may finish it while this one waits here
            finished, begun = parallel.by_rank_0(
                lambda: [begun_before(folder, inputs) for folder in (out, partial)])
            if finished:
                print(f"{out} is finished: nothing is left to do.\n")
            else:
                print(f"{counted(len(texts[0]), 'program')} to learn from, "
                      f"{'resuming' if begun else 'starting'} in {partial}; the bars show how long "
                      "it takes.")
                describe(cfg, base.model, device)
                pieces = [cut(base.encoding, some, cfg.context) for some in texts]
                check_memory(cfg, base.model, device, [len(ids) for ids, _ in pieces[0]], most,
                             free)
                make(cfg, base, pieces, rule, partial, inputs)
            if parallel.rank() == 0:
                shutil.rmtree(out / WORK, ignore_errors=True)
            print(parallel.by_rank_0(what_was_found, cfg))


@contextlib.contextmanager
def only_one(partial):
    """Inside, rank 0 has the folder of unfinished work to itself; it is not left behind empty."""
    if parallel.rank():
        yield
        return
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial):
        partial.mkdir(exist_ok=True)  # in case the run that had the lock has left it empty
        remove_leftovers(partial)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it is not empty, or it has its final name
                partial.rmdir()


def make(cfg, base, pieces, rule, partial, inputs):
    """Makes the checkpoint in `partial`, from where an earlier run ended, and moves it to --out."""
    parallel.by_rank_0(write_text, partial / "inputs.json", json.dumps(inputs, indent=2) + "\n")
    (partial / WORK).mkdir(exist_ok=True)  # nothing may be scored, as with --rule whole
    examples, held_out = examples_and_held_out(cfg, base, *pieces, rule, partial / WORK)
    tuned = tune(cfg, base, examples, partial)
    if parallel.rank() == 0:
        check = how_it_stops if rule else how_it_adapted
        write_text(partial / CHECK, check(cfg, tuned, base, held_out))
        os.replace(partial, cfg.out)


def what_was_found(cfg):
    """What was found when the finished checkpoint was checked, and what to do with it."""
    path = Path(cfg.out, CHECK)
    said = read_text(path) if path.exists() else ""
    if cfg.adapter:
        return (f"{said}The adapter is in {cfg.out}, for PEFT and for servers that load it over "
                f"{cfg.model}")
    needs_eta = cfg.rule == "whole" or NOT_LEARNED in said
    return (f"{said}The checkpoint is in {cfg.out}. Try: python empower.py suggest --model "
            f"{cfg.out} FILE:LINE:COL" + f" --eta {cfg.eta:g}" * needs_eta)


def check_memory(cfg, model, device, lengths, most, free):
    """Says how much memory the training takes; a UserError if the machine does not have it.

    lengths: of the pieces, in tokens. most: tokens that a completion has, for each needs its
    logits. free: bytes before the model was loaded, or None if they are not known.
    """
    needed = training_bytes(
        model.config, cfg.lora, model.dtype.itemsize,
        min(cfg.micro_batch, parallel.share(min(cfg.batch, len(lengths)))),
        max(16, min(cfg.context, 1 + max(lengths))), cfg.recompute,
        width=2 if "cuda" in device else 4, processes=parallel.size(),
        labels=cfg.context if cfg.all_states else most)
    print(f"Training takes about {needed / 1e9:.1f} GB of memory"
          + " in each process" * (parallel.size() > 1)
          + (f"; {free / 1e9:.1f} GB are free." if free else "."))
    if free and needed > free:
        raise UserError(f"training takes about {needed / 1e9:.1f} GB of memory, but only "
                        f"{free / 1e9:.1f} GB are free: give --lora 16, --recompute, "
                        "--micro-batch 1 or a smaller --context, or choose a smaller model")


def examples_and_held_out(cfg, base, pieces, unseen, rule, folder):
    """(examples to learn from, completions that are held out), one for each piece.

    If no program can be held out, a fifth of the pieces is. Without a rule, what is held out are
    whole pieces, with their costs.
    """
    if not unseen:
        n = len(pieces) // 5
        pieces, unseen = pieces[:len(pieces) - n], pieces[len(pieces) - n:]
        print(f"  no program can be held out; {counted(n, 'piece')} of programs that are learned "
              "from, too, are held out instead" if n else
              "  the corpus is too small to hold anything out: nothing is checked")
    unseen = scored(base, unseen, folder / "costs-held-out")
    if not rule:
        return [sft_example(base.encoding, [], ids, ends) for ids, ends in pieces], unseen
    pieces = scored(base, pieces, folder / "costs-train")
    learned = completions_of(cfg, pieces, rule, "train")
    held_out = completions_of(cfg, unseen, rule, "held-out")
    if not cfg.all_states:
        return [sft_example(base.encoding, *completion) for completion in learned], held_out
    rng = numpy_generator(cfg, "lengths in every state")
    return [all_states_example(base.encoding, ids, lengths_in_every_state(rule, nll, rng), ends)
            for ids, nll, ends in pieces], held_out


def scored(base, pieces, folder):
    """[(token ids, costs in bits, whether the text ends there)]; costs are kept in `folder`."""
    costs = pieces and kept_costs(folder, base, [ids for ids, _ in pieces])
    return [(ids, nll, ends) for (ids, ends), nll in zip(pieces, costs)]


def completions_of(cfg, pieces, rule, purpose):
    """`choose_completions` on scored pieces; says what they are like."""
    if not pieces:
        return []
    found = choose_completions(pieces, rule, numpy_generator(cfg, f"states {purpose}"),
                               numpy_generator(cfg, f"lengths {purpose}"))
    lengths = np.array([len(completion) for _, completion, _ in found])
    print(f"  {purpose}: {counted(len(pieces), 'piece')}, "
          f"{sum(len(ids) for ids, *_ in pieces):,} tokens, "
          f"{np.concatenate([nll for _, nll, _ in pieces]).mean():.2f} bits a token; completions "
          f"of {lengths.mean():.1f} tokens, {(lengths == 0).mean():.0%} empty")
    if (lengths == 0).mean() > 0.9 and purpose == "train":
        print("  Almost nothing is obvious to this model here: it will learn to be silent. Use a "
              "model that knows such code, or a larger --eta.")
    return found


def tune(cfg, base, examples, folder):
    """Trains the base model itself on examples, saves it in the folder and returns it.

    Trained weights are float32, and stay so in the checkpoint: most steps of 1e-5 would be lost in
    bfloat16. Of several processes rank 0 returns the model, the others None.
    """
    model, dtype, device = base.model, base.model.dtype, base.model.device
    if cfg.lora:
        add_lora(model, cfg.lora, torch_generator(cfg, "lora", "cpu"))
    parallel.shard(model, full=not cfg.lora)
    every = {"collate": all_states.collate, "loss_of": functools.partial(
        all_states.all_states_loss, stop=base.encoding.stop)} if cfg.all_states else {}
    progress = Progress(folder / WORK / "progress.pt", 60 * cfg.save_minutes)
    with recomputing(model, cfg.recompute):
        losses = train_and_save(model, examples, cfg.batch, adamw(model, cfg.rate),
                                python_generator(cfg, "batches"), cfg.rule, progress,
                                micro_batch=cfg.micro_batch, clip=cfg.clip, **every)
    few = min(10, -(-len(losses) // 2))
    print(f"  {counted(len(losses), 'update')}; loss from {np.mean(losses[:few]):.3f} to "
          f"{np.mean(losses[-few:]):.3f} nats a token (first and last {few})")
    model = whole_model(model, cfg.lora, dtype)
    if parallel.rank():
        return None
    if cfg.adapter:
        save_adapter(model, cfg.model, folder)
    elif cfg.lora:
        merge_lora(model)
    if not cfg.adapter:
        save_checkpoint(dataclasses.replace(base, model=model), folder)
    if parallel.size() == 1:
        return model
    free, needed = available_bytes(device), 1.2 * sum(w.nbytes for w in model.parameters())
    if cfg.lora or free is None or needed < free:
        return model.to(device)
    print(f"  {device} has no room for the model in float32: it is checked in "
          f"{str(dtype).removeprefix('torch.')}")
    return model.to(device, dtype)


def whole_model(model, lora, dtype):
    """In rank 0, an ordinary GPT of a model that `shard` has spread, with its updates if any.

    lora: their rank, or 0. Weights that are not trained become `dtype`. With several processes the
    model is on the CPU.
    """
    if parallel.size() == 1:
        return model
    weights = {}
    for name, weight in model.named_parameters():
        tensor = parallel.whole(weight.detach())
        if parallel.rank() == 0:
            weights[name] = (tensor if weight.requires_grad else tensor.to(dtype)).cpu()
    if parallel.rank():
        return None
    with torch.device("meta"):
        found = new_model(model.config)
        if lora:
            add_lora(found, lora, None)
    found.load_state_dict(weights, strict=False, assign=True)
    if found.config.tie_word_embeddings:
        found.lm_head.weight = found.embed_tokens.weight
    found.writable = model.writable
    return found.eval()


def how_it_stops(cfg, model, base, held_out):
    """The lengths that the rule asks for on held-out completions, and those written, as text.

    Sampled, as it was trained, and greedy, as `suggest` writes: greedy text stops more often.
    """
    if not held_out:
        return ""
    held_out = held_out[:200]
    print(f"  checking on {counted(len(held_out), 'held-out piece')} how it stops")
    rows = with_learned([check_stopping(f"{cfg.rule}, {way}", Assistant(
        model, cfg.max_suggestion, temperature=temperature), base.encoding, held_out,
        derived_seed(cfg.seed, "stopping"))
        for way, temperature in (("sampled", 1.0), ("greedy", 0.0))])
    learned = all(row["learned"] == "yes" for row in rows)
    return (f"Did it learn to stop? On {counted(len(held_out), 'held-out piece')}, up to "
            f"{cfg.max_suggestion} tokens (suggest is greedy):\n\n{table(rows, STOPPING)}\n\n"
            + f"{NOT_LEARNED}\n" * (not learned))


def how_it_adapted(cfg, model, base, held_out):
    """What a token of held-out pieces cost before and costs now, in bits, as text."""
    if not held_out:
        return ""
    before = np.concatenate([nll for _, nll, _ in held_out]).mean()
    after = np.concatenate(score(model, [ids for ids, *_ in held_out], base.encoding.start)).mean()
    return (f"Did it adapt? {counted(len(held_out), 'held-out piece')}: {before:.2f} bits a token "
            f"before, {after:.2f} now.\n")


# ------------------------------------------------------------------- the folder of the checkpoint


def begun_before(folder, inputs):
    """Whether the folder holds this same work; a UserError if it holds anything else."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return False
    try:
        found = read_json(folder / "inputs.json")
    except ValueError:
        found = {}
    if found == inputs:
        return True
    if found.keys() != inputs.keys():
        raise UserError(f"{folder} holds something else: choose another --out")
    names = {"base": "model or type of its files", "texts": "corpus or split of it", "rate": "--lr",
             "code": "version of the code"}
    changed = [names.get(name, f"--{name.replace('_', '-')}") for name in inputs
               if found[name] != inputs[name]]
    raise UserError(f"{folder} was begun with another {', '.join(changed)}: choose another --out, "
                    "or remove it")
