"""The generated contest as the experiment uses it: the model's shape and texts, a judged game.

The paper has published language models and problems instead. The miniature that takes their place
is described here, so that empower.py can keep to the method.
"""

import dataclasses
import math

import numpy as np

import data
import simhuman
from model import GPT, GPTConfig
from support import contest, judge, report
from support.checkpoint import Checkpoint
from support.cli import (bar, checked, describe, numpy_generator, pick_device,
                         python_generator, torch_generator)
from support.optim import muon_and_adamw


def new_model(cfg, vocab_size):
    """A GPT with heads of 32 features, two query heads per key-value head, and a long context."""
    heads = cfg.width // 32
    shape = GPTConfig(vocab_size, cfg.width, 3 * cfg.width, cfg.layers, heads,
                      num_key_value_heads=heads // 2 if heads % 2 == 0 else heads, head_dim=32,
                      max_position_embeddings=4096)
    return GPT(shape, torch_generator(cfg, "weights", "cpu"))


def pretrain(train, cfg, encoding, documents, device="cpu"):
    """The Checkpoint of a new GPT that has read each document, token ids, once.

    train: `empower.train`. Fine-tuning shares this loop, and this file lies below it.
    """
    model = new_model(cfg, encoding.n_vocab).to(device)
    losses = list(bar(train(
        model, [(ids, 1) for ids in documents], cfg.pretrain_batch,
        muon_and_adamw(model, cfg.pretrain_lr), python_generator(cfg, "batches")),
        "pre-train", math.ceil(len(documents) / cfg.pretrain_batch)))
    print(f"  {sum(map(len, documents)):,} tokens seen; loss from {losses[0]:.2f} to "
          f"{np.mean(losses[-50:]):.3f} nats per token")
    return Checkpoint(model, encoding)


MINUTES = 6  # duration of the default run on 2 CPU cores


def announce(cfg, rules, lengths):
    """Says what a run will do and how long it takes, before any long work.

    It also tries each rule, and `lengths` (`empower.empower_lengths`), on two tokens: what is wrong
    in them or not yet written should be known before anything is trained.
    """
    for rule in rules.values():
        rule(np.ones(2), np.random.default_rng(0))
    report.left_to_human(lengths(np.ones(2), cfg.eta))
    print(f"Pre-train a GPT, let the human write {cfg.train_problems} programs, fine-tune "
          f"{len(rules)} assistants\nand play {cfg.held_out_problems} unseen problems with each: "
          f"about {MINUTES} minutes on 2 CPU cores at the default settings,\n"
          "less if stages are reused.")
    describe(cfg, new_model(cfg, cfg.vocab_size), pick_device(cfg.device))


def new_contest(cfg):
    """The problems of the contest; a UserError if there are too few, or the judge does not work."""
    checked(judge.check_judge)
    return checked(contest.make_contest, python_generator(cfg, "contest"), cfg.train_problems,
                   cfg.dev_problems, cfg.held_out_problems)


def contest_texts(cfg, problems):
    """The training text of the language model: [(statement or "", program)], in many styles.

    Half of the documents begin with the problem statement, so the same model can play every role:
    shown the statement it is the human; without it, the scorer and Base.
    """
    rng = python_generator(cfg, "documents")
    drawn = [rng.choice(problems) for _ in range(cfg.pretrain_steps * cfg.pretrain_batch)]
    return [(problem.statement * rng.randint(0, 1),
             contest.write_program(problem.parts, contest.draw_style(rng))) for problem in drawn]


def contest_tokenizer(cfg, texts):
    """A tokenizer trained on the first of the texts."""
    return data.train_tokenizer([text for pair in texts[:4000] for text in pair], cfg.vocab_size)


def contest_documents(encoding, texts):
    """What the language model reads: one document for each text, as token ids."""
    return [data.document(encoding, *pair) for pair in texts]


def goals(encoding, problems):
    """What the human knows about each problem, as token ids: the start token and the statement."""
    return [[encoding.start, *encoding.encode_ordinary(problem.statement)] for problem in problems]


def verdicts(written, problems):
    """Whether each program of `empower.write_programs` passes the tests of its problem: [bool]."""
    tests = {problem.statement: problem.tests for problem in problems}
    return [verdict.passed for verdict in judge.judge_all(
        [(row["program"], tests[row["statement"]]) for row in written])]


def contest_game(cfg, name, problems, encoding, human, assistant, rounds):
    """Section 3: the episodes of these problems, judged by their tests, as plain data."""
    generator = torch_generator(cfg, f"game of {name}", human.model.device)
    reads = simhuman.attentive(numpy_generator(cfg, "attention"), human.attention, rounds,
                               len(problems))  # for all rows alike
    episodes = simhuman.play(goals(encoding, problems), human, assistant, rounds, encoding.start,
                             encoding.stops, generator, name, reads)
    judge.judge_episodes(episodes, problems, encoding.decode)
    return list(map(dataclasses.asdict, episodes))
