"""python page/miniature.py [--out OUT]: makes page/models, which come with the page.

Base and Empower (0.32) of the default run with seed 0, in bfloat16, and what a few rows of its
table did on the first problems. About 4 minutes on 2 CPU cores, less if the run is in OUT.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from empower import Config, Lab, completion_rules, rows_of_the_table
from page.offered import SHIPPED, as_text
from support.checkpoint import Checkpoint, save_checkpoint
from support.cli import Parser, plain_errors
from support.files import write_text

TRAINED = ("Empower (0.32)", "SFT-8")
SHOWN = ("Human alone", "Base", "Base-8", "Base stopped at 0.32 bits", *TRAINED)
HASTY = ("Base stopped at 0.32 bits", *TRAINED)  # also if she reads only some suggestions
PROBLEMS = 8


def make(out):
    """Writes page/models: base/, empower/ and about.json."""
    cfg = Config(out=out)
    lab = Lab(cfg)
    trained = {name: lab.train(name, rule) for name, rule in completion_rules(cfg).items()
               if name in TRAINED}
    assistants = rows_of_the_table(cfg, lab.base, trained)
    rows = {name: lab.play(name, assistant) for name, assistant in
            assistants.items() if name in SHOWN}
    hasty = dataclasses.replace(lab.human, attention=cfg.attention_low)
    rows |= {f"{name}, reads {cfg.attention_low:g}": lab.play(name, assistants[name], hasty)
             for name in HASTY}
    empower = trained[TRAINED[0]]
    for name, model in (("base", lab.base.model), ("empower", empower.model)):
        save_checkpoint(Checkpoint(model.to(torch.bfloat16), lab.base.encoding), SHIPPED / name)
    games = {"problems": [problem.statement for problem in lab.contest.held_out[:PROBLEMS]],
             "rows": {name: [as_text(episode, lab.base.encoding.decode)
                             for episode in row[:PROBLEMS]] for name, row in rows.items()}}
    write_text(SHIPPED / "about.json", json.dumps({
        "made by": "python page/miniature.py",
        "assistants": {TRAINED[0]: {"folder": "empower", "max_tokens": empower.max_tokens}},
        "games": games}, indent=1) + "\n")


def main():
    """The command line."""
    parser = Parser(prog="page/miniature.py", description=__doc__.split("\n\n")[0],
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out", help="folder of the run (default: out)")
    args = parser.parse_args()
    with plain_errors("page/miniature.py"):
        make(args.out)


if __name__ == "__main__":
    sys.exit(main())
