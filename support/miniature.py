"""The generated contest as the experiment uses it: the model's shape and texts, a judged game.

The paper has published language models and problems instead. The miniature that takes their place
is described here, so that empower.py can keep to the method.
"""

import dataclasses

import data
import simhuman
from model import GPT, GPTConfig
from support import contest, judge
from support.cli import python_generator, torch_generator


def new_model(cfg, vocab_size):
    """A GPT with heads of 32 features, two query heads per key-value head, and a long context."""
    heads, end = cfg.width // 32, vocab_size - 1
    shape = GPTConfig(vocab_size, cfg.width, 3 * cfg.width, cfg.layers, heads,
                      num_key_value_heads=heads // 2 if heads % 2 == 0 else heads, head_dim=32,
                      max_position_embeddings=4096, bos_token_id=end, eos_token_id=end)
    return GPT(shape, torch_generator(cfg, "weights", "cpu"))


def contest_texts(cfg, problems):
    """The training text of the language model: [(statement or "", program)], in many styles.

    Half of the documents begin with the problem statement. With the statement in its context the
    model is the human; without it, the scorer and Base.
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


def contest_game(problems, encoding, human, assistant, rounds, generator, label):
    """Section 3: the episodes of these problems, judged by their tests, as plain data."""
    episodes = simhuman.play(goals(encoding, problems), human, assistant, rounds, encoding.start,
                             encoding.stops, generator, label)
    judge.judge_episodes(episodes, problems, encoding.decode)
    return list(map(dataclasses.asdict, episodes))
