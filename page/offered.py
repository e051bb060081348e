"""What a page has to offer: the scorer, the assistants, programs to read and episodes to watch.

They come with the page (page/models, made by page/miniature.py), from a finished run (--out), or
from checkpoints that the user names (--model, --assistant).
"""

import dataclasses
import json
import math
from pathlib import Path

import torch

from empower import Config, empower_lengths, score
from page.assistants import Choice, Models
from realcode.checkpoints import load_checkpoint
from realcode.given import given_model
from realcode.suggest import HEALING
from simhuman import Episode
from support.cli import UserError, checked, pick_device, python_generator, reading
from support.contest import make_contest
from support.files import read_text
from support.report import left_to_human

SHIPPED = Path(__file__).parent / "models"
EXAMPLE = Path(__file__).resolve().parent.parent / "figures" / "program.py"
SMALL = ("A small GPT reads here that knows only generated contest programs: other code looks "
         "surprising to it. For another model: python empower.py page --model DIR.")
BEFORE_CONTEXT = 10   # the N of Base-N, as in the paper's simulation (Section 5.1)


@dataclasses.dataclass
class Offer:
    """What the page shows. texts: as in `texts_of`; games: as in `games_of`.

    reader: a sentence about the model that reads programs. own: whether the episodes are of models
    that the page serves.
    """

    models: Models
    texts: list
    games: dict
    reader: str = ""
    own: bool = True


def find_offer(cfg):
    """The Offer for the settings of a page; a UserError says what is missing."""
    device = pick_device(cfg.device)
    if cfg.out:
        found, trained = of_a_run(Path(cfg.out), device)
    else:
        found, trained = shipped(device)
    scorer = given_model(cfg, device) if cfg.model else found["scorer"]
    if cfg.model and not cfg.out:
        trained = {}  # they were trained on the language of the generated contest
    trained = dict(sorted(trained.items(), key=lambda item: not item[0].startswith("Empower")))
    choices = {**given_assistants(cfg, device), **trained,
               f"Base-{BEFORE_CONTEXT}": Choice(scorer, BEFORE_CONTEXT),
               "Base stopped at eta": Choice(scorer, cfg.max_suggestion, needs_eta=True)}
    example = ("figures/program.py", read_text(EXAMPLE), "")
    texts = found["texts"] if cfg.model else telling_first(scorer, found["texts"])
    return Offer(Models(scorer, choices), [*texts, example], found["games"],
                 f"{cfg.model} reads here." if cfg.model else SMALL, not cfg.model or bool(cfg.out))


def given_assistants(cfg, device):
    """{name: Choice} of --assistant NAME=DIR."""
    choices = {}
    for given in cfg.assistant:
        name, _, folder = given.partition("=")
        if not name or not folder:
            raise UserError(f"--assistant is {given!r}: give NAME=DIR")
        choices[name] = trained_choice(
            name, given_model(dataclasses.replace(cfg, model=folder), device), cfg.max_suggestion)
    return choices


def trained_choice(name, checkpoint, max_tokens):
    """The Choice of an assistant that was trained to stop.

    In the middle of a word it is silent if the rest of the word is not obvious; the baselines,
    SFT-N and the like, write at every caret.
    """
    return Choice(checkpoint, max_tokens,
                  healing=math.inf if name.upper().startswith("SFT") else HEALING)


def shipped(device):
    """(scorer, texts and games; {name: Choice}) of the models that come with the page."""
    with reading(SHIPPED):
        about = json.loads(read_text(SHIPPED / "about.json"))
        found = {"scorer": load_checkpoint(SHIPPED / "base", device, torch.float32),
                 "games": about["games"], "texts": texts_of(about["games"])}
        return found, {name: trained_choice(name, load_checkpoint(
            SHIPPED / each["folder"], device, torch.float32), each["max_tokens"])
            for name, each in about["assistants"].items()}


def of_a_run(out, device):
    """The same of the last finished run in a folder."""
    if not (out / "results.json").exists():
        raise UserError(f"there is no finished run in {out}: run python empower.py --out {out} "
                        "first, or omit --out for the models that come with the page")
    with reading(out / "results.json"):
        results = json.loads(read_text(out / "results.json"))
        config, stages = results["config"], results["stages"]
        models = {name: kept_model(out / "stages" / stage, device)
                  for name, stage in results["models"].items()}
        played = {stage.removeprefix("row "): folder for stage, folder in stages.items()
                  if stage.startswith("row ")}
        rows = {name: json.loads(read_text(out / "stages" / folder / "value.json"))
                for name, folder in played.items()}
        games = games_of(config, rows, models["base"].encoding)
        return ({"scorer": models["base"], "games": games, "texts": texts_of(games)},
                {name: trained_choice(name, model, results["caps"][name])
                 for name, model in models.items() if name != "base"})


def kept_model(folder, device):
    """The Checkpoint of a stage."""
    with reading(folder):
        return load_checkpoint(folder, device)


def telling_first(scorer, texts, eta=0.32, n=10):
    """The texts, as in `texts_of`, beginning with the one in which Empower and SFT differ most.

    It has the most tokens of more than 1 bit that Empower leaves to her and SFT-N writes, at the
    page's own eta (bits) and N (tokens).
    """
    if not texts:
        return texts
    encoding, some = scorer.encoding, texts[:20]
    costs = score(scorer.model, [encoding.encode_ordinary(text) for _, text, _ in some],
                  encoding.start)
    differ = [sum(nll[k] > 1 and k % (n + 1) != n for k in left_to_human(empower_lengths(nll, eta)))
              for nll in costs]
    first = differ.index(max(differ))
    return [texts[first], *texts[:first], *texts[first + 1:]]


def games_of(config, rows, encoding):
    """{"problems": [statement], "rows": {name: [episode as text]}} of a run on the contest.

    Without problems if the run replayed programs, which have no statements here.
    """
    names = {field.name for field in dataclasses.fields(Config)}
    if config.keys() != names:
        return {"problems": [], "rows": {}}
    cfg = Config(**config)
    problems = checked(make_contest, python_generator(cfg, "contest"), cfg.train_problems,
                       cfg.dev_problems, cfg.held_out_problems).held_out
    return {"problems": [problem.statement for problem in problems],
            "rows": {name: [as_text(Episode.from_dict(episode), encoding.decode)
                            for episode in episodes]
                     for name, episodes in rows.items()}}


def as_text(episode, decode):
    """An episode for the page: what was suggested, what it cost her, what she typed."""
    return {"passed": episode.passed, "finished": episode.finished, "turns": [
        {"suggestion": decode(turn.suggestion), "tokens": len(turn.suggestion),
         "bits": round(sum(turn.nll), 2), "accepted": turn.accepted, "read": turn.read,
         "typed": decode(turn.typed)} for turn in episode.turns]}


def code_of(episode):
    """The program that an episode `as_text` ends with."""
    return "".join(turn["suggestion"] * turn["accepted"] + turn["typed"]
                   for turn in episode["turns"])


def texts_of(games):
    """[(name, program, statement)]: what she wrote without an assistant, named by what it does."""
    return [(statement.strip().splitlines()[-1].strip("# ."), code_of(episode), statement)
            for statement, episode in zip(games["problems"], games["rows"].get("Human alone", []))]
