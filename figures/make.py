"""The evidence: does it hold across seeds, degrees of care, humans, lengths and budgets?

    python figures/make.py calibrate how the second attention was chosen, before the sweep
    python figures/make.py sweep     every experiment, into results.json next to this file
    python figures/make.py plot      results.json drawn, as SVG (needs matplotlib)
    python figures/make.py report    results.json as the tables quoted in README.md
    python figures/make.py tune      how optimizer and rate of fine-tuning were chosen
    python figures/make.py real      real code and a published model, into real.json

A sweep reuses the stages in --out, including those of `python empower.py`, and resumes where it
was interrupted. It keeps one process for each core busy. experiments.py says what is played,
report.py has the tables, draw.py the pictures.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import real
import real_tables
import report
from empower import Config
from experiments import Plan, answer, calibration, prepare, questions, tuned
from intervals import STUDENT
from support import cli, judge
from support.cache import Cache
from support.cli import UserError
from support.files import write_text
from support.paper import PAPER, paper_means

# Durations on 2 CPU cores, if nothing is finished; that of real code is an estimate.
MINUTES = {"sweep": 100, "calibrate": 12, "tune": 10, "real": 2000}
REAL_ON_GPU = 60  # minutes on an H100 with --workers 6, an estimate too

# ------------------------------------------------------------------- several processes


def in_parallel(tasks, label, log, workers):
    """Does each task, (function, arguments) whose work is kept in stages, in one of the processes.

    Yields each task when it is done. The caller calls its function again and finds the stages
    finished; what a process failed to do is done there, or its error is raised there. With one
    worker nothing is done here.
    """
    if workers < 2:
        yield from tasks
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), begin,
                               (threads(workers), log))
    futures = {pool.submit(function, *arguments): (function, arguments)
               for function, arguments in tasks}
    try:
        for future in tqdm(as_completed(futures), label, len(futures), unit="task", disable=None):
            if future.exception():
                print(f"a process failed ({future.exception()!r}), see {log}")
            yield futures[future]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():  # after Ctrl-C they are still at work
            process.terminate()


def begin(threads, log):
    """The first thing that a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the parent ends it
    parent = multiprocessing.parent_process()  # if that is killed, nobody ends this one
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # Python would warn of its own, a semaphore, after Ctrl-C
    sys.stdout = open(log, "a", buffering=1, encoding="utf-8")


def threads(workers):
    """The threads of each process: its share of the cores."""
    return max(1, cores() // workers)


@contextlib.contextmanager
def logged(path):
    """What is printed goes to the end of a file, line by line."""
    with open(path, "a", buffering=1, encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield file


def cores():
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# ------------------------------------------------------------------- the sweep


def sweep(plan, cfg, results, workers):
    """Plays everything, or reads it from finished stages; writes and returns the results.

    The file is written again after each seed, and what an earlier sweep with the same plan and
    settings has written is kept: a sweep goes on from its results even where its stages are lost.
    """
    begun, device, log = time.time(), cli.pick_device(cfg.device), Path(cfg.out, "sweep.log")
    cli.checked(judge.check_judge)
    Cache(cfg.out)  # says why a folder cannot be used
    writable(results)
    asked = json.loads(json.dumps({"config": dataclasses.asdict(cfg),
                                   "plan": dataclasses.asdict(plan)}))
    del asked["config"]["out"]
    found = begun_before(results, asked) or {**asked, "environment": {
        **cli.environment(device), "processes": workers, "threads": threads(workers)}, "seeds": {}}
    seeds = [(k, dataclasses.replace(cfg, seed=cfg.seed + k)) for k in range(plan.seeds)]
    print(f"{plan.seeds} seeds, of which {len(found['seeds'])} are in {results}: attention, care, "
          f"rounds, ability, lengths;\na second human on {plan.second_humans} seeds, and the "
          f"bound. About {MINUTES['sweep']} minutes on 2 CPU cores, less if stages\nare reused. "
          f"Device {device}, {workers} processes, stages in {cfg.out}, log in {log}")
    left = {k: len(questions(plan, k)) for k, seed in seeds if str(seed.seed) not in found["seeds"]}
    for function, arguments in in_parallel(in_order(plan, [
            (k, seed) for k, seed in seeds if k in left]), "sweep", log, workers):
        if function is answer:
            _, seed, k, _ = arguments
            left[k] -= 1
            if not left[k]:
                with logged(log):
                    found["seeds"][str(seed.seed)] = rounded({
                        name: answer(plan, seed, k, name) for name in questions(plan, k)})
                write_text(results, json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(f"{(time.time() - begun) / 60:.0f} minutes; next: python figures/make.py plot")
    return found


def in_order(plan, seeds):
    """The tasks of a sweep: a seed is prepared while the one before it is played."""
    first, asked = [(prepare, (seed,)) for _, seed in seeds], []
    for n, (k, seed) in enumerate(seeds):
        asked += first[:2] if n == 0 else first[n + 1:n + 2]
        asked += [(answer, (plan, seed, k, question)) for question in questions(plan, k)]
    return asked


def begun_before(results, asked):
    """What an unfinished sweep with this plan and these settings has found, or None."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(results.read_text())
        if {name: found[name] for name in asked} == asked:
            return found


def calibrate(plan, cfg, results, workers):
    """The attention at which untrained, uncapped Base is accepted as often as in the paper.

    Writes and prints the curve it is chosen from; returns both. Development problems of the first
    seeds, and Base alone: nothing else of the paper, and no trained assistant, is looked at.
    """
    Cache(cfg.out)
    writable(results)
    print(f"Base plays development problems on {plan.calibrated} seeds; about "
          f"{MINUTES['calibrate']} minutes on 2 CPU cores, less if stages are reused.")
    log = Path(cfg.out, "calibrate.log")
    tasks = [(calibration, (plan, dataclasses.replace(cfg, seed=cfg.seed + k)))
             for k in range(plan.calibrated)]
    list(in_parallel(tasks, "calibrate", log, workers))
    with logged(log):
        seeds = [function(*arguments) for function, arguments in tasks]
    rows = [{key: float(np.mean([seed["rows"][k][key] for seed in seeds])) for key in
             ("attention", "accept_ratio", "pass@1")} for k in range(len(plan.candidates))]
    paper = float(np.mean([paper_means(human, "Base")[1] for human in PAPER]))
    found = rounded({
        "rows": rows, "paper": paper, "chosen": min(
            rows, key=lambda row: abs(row["accept_ratio"] - paper))["attention"],
        **{name: float(np.mean([seed[name] for seed in seeds]))
           for name in ("human", "less able")}})
    write_text(results, json.dumps(found, indent=1) + "\n")
    print(report.calibration(found))
    return found


def rounded(plain, digits=4):
    """Plain data with its floats rounded: committed results should be readable, diffs clear."""
    if isinstance(plain, float):
        return round(plain, digits)
    if isinstance(plain, dict):
        return {key: rounded(value, digits) for key, value in plain.items()}
    return [rounded(value, digits) for value in plain] if isinstance(plain, list) else plain


def tune(plan, cfg, results, workers):
    """Optimizer and rate of fine-tuning with the smallest loss on development problems.

    Writes and prints the losses; returns the best row of `experiments.tuned`.
    """
    Cache(cfg.out)
    writable(results)
    print(f"{len(plan.rates)} times {len(report.rules(cfg))} assistants learn; about "
          f"{MINUTES['tune']} minutes on 2 CPU cores, less if stages are reused.")
    log, tasks = Path(cfg.out, "tune.log"), [(tuned, (plan, cfg, *rate)) for rate in plan.rates]
    with logged(log):
        tasks[0][0](*tasks[0][1])  # makes what all share
    list(in_parallel(tasks[1:], "tune", log, workers))
    with logged(log):
        rows = rounded([function(*arguments) for function, arguments in tasks])
    write_text(results, json.dumps(rows, indent=1, allow_nan=False) + "\n")
    best = min(rows, key=lambda row: row["mean"])
    print(f"{report.tuning(rows)}\nBits per token of held-out completions and their stop, on "
          "development problems; then the mean cost\nof tokens that cost Base less than 0.05 bits."
          f"\n{best['optimizer']} at {best['rate']:g} has the smallest mean.")
    return best


def on_real_code(plan, out, results, workers):
    """What real.py asks of each corpus and seed; writes and returns the results."""
    begun, log, device = time.time(), Path(out, "real.log"), cli.pick_device("auto")
    Path(out).mkdir(parents=True, exist_ok=True)
    writable(results)
    real.model_file()
    tasks = [(real.answer, (plan, out, corpus, seed)) for seed in plan.seeds
             for corpus in plan.corpora if real.corpus_of(corpus)]
    print(f"{real.count(plan)} trainings in all: {', '.join(plan.corpora)}; seeds "
          f"{', '.join(map(str, plan.seeds))}.\nAbout {MINUTES['real']} minutes on 2 CPU cores, "
          f"{REAL_ON_GPU} on an H100 with --workers 6, less if stages are reused.\nDevice "
          f"{cli.device_name(device)}, {workers} processes, stages in {out}/real-*, log in {log}, "
          f"results in {results}")
    list(in_parallel(tasks, "real code", log, workers))
    with logged(log):
        found = {str(seed): {corpus: real.answer(plan, out, corpus, seed)
                             for corpus in plan.corpora} for seed in plan.seeds}
    found = {"plan": dataclasses.asdict(plan), "chosen_on": [], "parts": [{
        "command": "python figures/make.py real", "seeds": list(plan.seeds), "environment": {
            **cli.environment(device), "processes": workers, "threads": threads(workers)}}],
             "seeds": rounded(found)}
    found = json.loads(json.dumps(found, allow_nan=False))
    write_text(results, json.dumps(found, indent=1) + "\n")
    print(f"{of_real_code(found)}\n\n{(time.time() - begun) / 60:.0f} minutes")
    return found


def of_real_code(found):
    """The tables of real code, with their headings."""
    return "\n\n".join(f"## {name.capitalize()}\n\n{block}"
                       for name, block in real_tables.blocks(found).items())


def found_by(command, path):
    """What this command has written to a file, or None if there is no file."""
    try:
        found = json.loads(path.read_text()) if path.exists() else None
        if found is not None:
            {"tune": lambda: found[0]["rate"], "calibrate": lambda: found["rows"][0]}.get(
                command, lambda: found["seeds"].items())()
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: remove it, or run python figures/make.py {command}") \
            from None


def writable(results):
    """Raises a UserError if this file cannot be written."""
    if results.is_dir() or not os.access(results if results.exists() else results.parent, os.W_OK):
        raise UserError(f"cannot write --results {results}: name a file in a folder that exists")


# ------------------------------------------------------------------- the command line


def main(argv=None):
    """Runs one command of the command line."""
    parser = cli.Parser(prog="figures/make.py", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sweeping = commands.add_parser("sweep", help="every experiment, into results.json")
    sweeping.add_argument("--seeds", type=int, default=Plan.seeds, help="2 to 10 (default: 5)")
    calibrating = commands.add_parser("calibrate", help="choose the second attention")
    tuning = commands.add_parser("tune", help="choose optimizer and rate of fine-tuning")
    real_code = commands.add_parser("real", help="real code and a published model")
    for command in (sweeping, calibrating, tuning, real_code):
        command.add_argument("--out", default="out", help="folder of the stages (default: out)")
        command.add_argument("--workers", type=int, default=cores(),
                             help="processes at a time (default: one for each CPU core)")
    plotting = commands.add_parser("plot", help="results.json drawn, as SVG")
    reporting = commands.add_parser("report", help="results.json as tables")
    for command, name in ((tuning, "tune.json"), (calibrating, "calibrate.json"),
                          (real_code, "real.json")):
        command.add_argument("--results", type=Path, default=HERE / name,
                             help=f"the file of results (default: {name} next to this script)")
    for command in (sweeping, plotting, reporting):
        command.add_argument("--results", type=Path, default=HERE / "results.json",
                             help="the file of results (default: results.json next to "
                                  "this script); pictures go next to it")
    args = parser.parse_args(argv)
    with cli.plain_errors("figures/make.py"):
        obey(args)


def obey(args):
    """Runs the command that the command line asks for."""
    if getattr(args, "workers", 1) < 1:
        raise UserError(f"--workers is {args.workers}: give at least 1")
    if args.command == "calibrate":
        return calibrate(Plan(), Config(out=args.out), args.results, args.workers)
    if args.command == "tune":
        return tune(Plan(), Config(out=args.out), args.results, args.workers)
    if args.command == "real":
        return on_real_code(real.RealPlan(), args.out, args.results, args.workers)
    if args.command == "sweep":
        if not 2 <= args.seeds <= max(STUDENT):
            raise UserError(f"--seeds is {args.seeds}: give 2 to {max(STUDENT)}")
        return sweep(Plan(seeds=args.seeds), Config(out=args.out), args.results, args.workers)
    results = report.read(args.results)
    losses, calibrated, published = (found_by(name, args.results.parent / f"{name}.json")
                                     for name in ("tune", "calibrate", "real"))
    try:
        if args.command == "report":
            print(report.text(results, losses, calibrated))
            return print(f"\n{of_real_code(published)}") if published else None
        import draw
        for path in draw.all_figures(results, published, args.results.parent):
            print(path)
    except ModuleNotFoundError:
        raise UserError("matplotlib is missing: pip install -r figures/requirements.txt") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{args.results} is not the result of a sweep ({error!r}): run python "
                        "figures/make.py sweep") from None


if __name__ == "__main__":
    sys.exit(main())
