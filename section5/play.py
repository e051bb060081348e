"""python empower.py play --problems FILE --human URL --assistant NAME=SOURCE ... --out DIR."""

import dataclasses
import json
import math
import re
import time
from pathlib import Path

import data
import simhuman
from realcode.checkpoints import load_checkpoint
from realcode.gguf_file import is_gguf
from realcode.tokenizer_files import load_tokenizer
from section5.client import Server
from section5.collect import (DIFFICULTY, HUMAN, HUMAN_MODEL, LIMIT, PARALLEL, PROBLEMS, REASONING,
                              SINCE, TIMEOUT, alone, asked_for, in_parallel, read_lines)
from section5.players import (AROUND, REASONS, WORD, BaseHuman, LocalAssistant, PromptedAssistant,
                              PromptedHuman, ServedAssistant, all_prompts)
from section5.problems import judge_programs
from simhuman import Episode
from support import cli, judge, report
from support.cache import open_folder
from support.cli import UserError, check_ranges, checked, flag, pick_device, torch_generator
from support.digest import fingerprint
from support.files import slug, write_text

ALONE = "Human alone"
HUMANS = {"chat": PromptedHuman, "base": BaseHuman}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the game on real problems, with a human on a server (Section 5)."""

    out: str = flag("out/play", "folder for everything that the games make")
    device: str = flag("auto", "of local assistants: auto, cpu, cuda or mps")
    seed: int = flag(0, "feeds all randomness; sent to servers with each call")
    problems: str = flag("", PROBLEMS)
    since: str = flag("", SINCE)
    difficulty: str = flag("", DIFFICULTY)
    limit: int = flag(None, LIMIT, 1)
    packages: bool = flag(False, "let programs import the packages that are installed here, such "
                                 "as numpy; without it, the standard library alone")
    human: str = flag("", HUMAN)
    human_model: str = flag("", HUMAN_MODEL)
    human_kind: str = flag("chat", "chat: she is asked; base: a base model, which continues")
    assistant: tuple = flag((), "NAME=SOURCE: a checkpoint folder, a GGUF file, or an address; "
                                "chat:ADDRESS for an instruct model, ADDRESS#MODEL for one of "
                                "several. Base-N and SFT-N are capped at N tokens; Base also "
                                "plays capped at K_H and twice that, and stopped at eta bits")
    tokenizer: str = flag("", "folder of the tokenizer that counts tokens (default: that of the "
                              "first local assistant, or one trained on the statements)")
    eta: float = flag(0.32, "threshold of the untrained Base, bits (Section 5.1)", 0)
    turn_tokens: int = flag(10, "K_H, most tokens that she writes in a turn (5.1)", 1)
    rounds: int = flag(50, "most rounds a problem (5.1)", 1)
    max_suggestion: int = flag(100, "cap on a suggestion, tokens", 1)
    temperature: float = flag(1.0, "sampling of human and assistants (5.1: defaults)", 0)
    reasoning_tokens: int = flag(0, REASONING, 0)
    parallel: int = flag(16, PARALLEL, 1)
    timeout: float = flag(120.0, TIMEOUT, 1)
    gamma: float = flag(0.999, "discount of DPR (5.1)", 0, 1)
    alpha: float = flag(0.1, "DPR's weight of a token read", 0)
    beta: float = flag(0.5, "DPR's weight of a token written", 0)

    def __post_init__(self):
        check_ranges(self)
        if self.human_kind not in HUMANS:
            raise UserError(f"--human-kind is {self.human_kind!r}: choose chat or base")


def play(cfg):
    """Section 5: the game on real problems, the judge, and the table.

    Every finished episode is a line in --out, so the same command goes on where it was interrupted.
    """
    begun = time.time()
    problems, server = asked_for(cfg)
    checked(judge.check_judge)
    sources = named_sources(cfg.assistant)
    encoding, rows = assistants(cfg, problems, sources)
    models = {name: described(source, rows[name]) for name, source in sources.items()}
    out = opened(cfg, problems, server, models, encoding)
    announce(cfg, server, problems, rows)
    seeded = obeys_seeds(HUMANS[cfg.human_kind](server, encoding, cfg.turn_tokens, 1.0, cfg.seed))
    server.check_answers()  # a model that needs --reasoning-tokens has answered nothing
    with alone(out):
        found, played = play_rows(cfg, server, encoding, problems, rows, out)
    results = {"config": dataclasses.asdict(cfg), "human": server.model, "assistants": models,
               "problems": len(problems),
               "rows": found, "claims": differences(cfg, played), "prompts": all_prompts(),
               "seeds": "obeyed" if seeded else "ignored by the human's server",
               "last session": {"calls": server.calls, "retries": server.retries,
                                "tokens": server.tokens, "empty answers": dict(+server.empty),
                                "seconds": round(time.time() - begun)}}
    write_text(out / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    print(f"\n{as_text(results)}\n\nresults.json, prompts, transcripts/ and every episode are in "
          f"{out}")
    return results


def play_rows(cfg, server, encoding, problems, rows, out):
    """(the rows of the table, {row: its judged episodes}), the human alone first."""
    found, played = [], {}
    for name, assistant in {ALONE: None, **rows}.items():
        lines = play_row(cfg, server, encoding, problems, name, assistant, out)
        episodes = [Episode.from_dict(lines[problem.id]["episode"]) for problem in problems]
        programs = [encoding.decode(episode.code) for episode in episodes]
        verdicts = judge_programs(problems, programs, label=f"judge {name}",
                                  packages=cfg.packages)
        for number, (episode, verdict) in enumerate(zip(episodes, verdicts)):
            episode.problem, episode.passed = number, verdict.passed
        asked, unclear = (sum(line[key] for line in lines.values()) for key in ("asked", "unclear"))
        played[name] = episodes
        found.append({**report.summarize(name, episodes, cfg),
                      "unclear": unclear / asked if asked else None})
        write_text(out / "transcripts" / f"{slug(name)}.txt", report.transcript(
            episodes[0], problems[0].statement + "\n", encoding.decode))
    return found, played


# ------------------------------------------------------------------- who plays


def named_sources(arguments):
    """{name: source} of --assistant NAME=SOURCE."""
    found = {}
    for argument in arguments:
        name, equals, source = argument.partition("=")
        if not (equals and name and source) or name in (ALONE, *found):
            raise UserError(f"--assistant {argument} is not NAME=SOURCE with a name of its own: as "
                            "in Base=DIR or Empower=http://127.0.0.1:8000")
        found[name] = source
    return found


def is_address(source):
    """Whether a source is on a server."""
    return source.removeprefix("chat:").startswith(("http://", "https://"))


def assistants(cfg, problems, sources):
    """(the tokenizer of all rows, {row: assistant})."""
    device, rows = pick_device(cfg.device), {}
    local = {name: checked(load_checkpoint, source, device) for name, source in sources.items()
             if not is_address(source)}
    encodings = {name: checkpoint.encoding for name, checkpoint in local.items()}
    if cfg.tokenizer:
        encodings = {"--tokenizer": checked(load_tokenizer, cfg.tokenizer), **encodings}
    first = next(iter(encodings), None)
    for name, encoding in encodings.items():
        if encoding._mergeable_ranks != encodings[first]._mergeable_ranks:
            raise UserError(f"{name} and {first} have different tokenizers, so their tokens cannot "
                            "be compared: play them apart, or serve one of them")
    encoding = encodings[first] if first else data.train_tokenizer(
        [f"{problem.statement}\n{problem.starter}" for problem in problems], 4096)
    for name, source in sources.items():
        make = local_maker(cfg, local[name]) if name in local else served_maker(
            cfg, source, encoding)
        capped = re.fullmatch(r"(?:Base|SFT)-(\d+)", name)
        rows[name] = make(int(capped[1]) if capped else cfg.max_suggestion)
        if name == "Base":
            K = cfg.turn_tokens
            rows |= {f"Base-{n}": make(n) for n in (K, 2 * K) if f"Base-{n}" not in sources}
            if not source.startswith("chat:"):
                rows[f"Base stopped at {cfg.eta:g} bits"] = make(cfg.max_suggestion, cfg.eta)
    names = {slug(name): name for name in (ALONE, *rows)}
    for name in rows:
        if names[slug(name)] != name:
            raise UserError(f"{name} and {names[slug(name)]} would be kept in the same file: "
                            "choose another name")
    return encoding, rows


def local_maker(cfg, checkpoint):
    """A function of (most tokens, most bits) that makes an assistant with this checkpoint."""
    return lambda most, bits=math.inf: LocalAssistant(
        checkpoint.model, min(most, cfg.max_suggestion), bits, temperature=cfg.temperature)


def served_maker(cfg, source, encoding):
    """The same for an assistant on a server."""
    kind = PromptedAssistant if source.startswith("chat:") else ServedAssistant
    server = Server(source.removeprefix("chat:"), timeout=cfg.timeout,
                    reasoning=cfg.reasoning_tokens)
    return lambda most, bits=math.inf: kind(
        server, encoding, min(most, cfg.max_suggestion), bits, cfg.temperature)


def announce(cfg, server, problems, rows):
    """Says what the games need at most, before they begin."""
    turns = len(problems) * cfg.rounds
    code = (cfg.turn_tokens + cfg.max_suggestion) * cfg.rounds // 2  # on average, at most
    # She may be asked twice to write, and twice for a verdict.
    calls = turns * (2 + len(rows) * 4)
    tokens = calls * cfg.reasoning_tokens + turns * (
        (1 + len(rows)) * 2 * (cfg.turn_tokens + AROUND + code) + len(rows) * (REASONS + WORD))
    print(f"{server.model} plays {len(problems)} problems alone and with {len(rows)} assistants: "
          f"at most {calls:,} calls and {tokens:,} tokens of the human's, much less as a rule; "
          f"{cfg.parallel} problems at a time. Every finished episode is kept in {cfg.out}.")


def obeys_seeds(human):
    """Whether the human's server answers the same to the same seed, tried once."""
    question = [{"role": "user", "content": "Write ten random words."}]
    first, second = (human.chat(question, 20, "seeds", "") for _ in range(2))
    return first == second


def described(source, assistant):
    """What tells one assistant from another, wherever its server is."""
    if is_address(source):
        return f"{type(assistant).__name__} {assistant.server.model}"
    return f"{source} {fingerprint(files_of(source))}"


def opened(cfg, problems, server, models, encoding):
    """The folder of these games; a UserError if it holds others."""
    out = Path(cfg.out)
    open_folder(out)
    (out / "transcripts").mkdir(exist_ok=True)
    inputs = {"problems": fingerprint([fingerprint(dataclasses.astuple(problem))
                                       for problem in problems]),  # one at a time in memory
              "human": [server.model, cfg.human_kind], "prompts": all_prompts(),
              "tokens": fingerprint(sorted((token.hex(), rank) for token, rank in
                                           encoding._mergeable_ranks.items())),
              "sources": models,
              **vars(cli.only(cfg, "seed", "eta", "turn_tokens", "rounds",
                               "max_suggestion", "temperature", "reasoning_tokens"))}
    path = out / "inputs.json"
    if path.exists():
        begun = json.loads(path.read_text())
        # Assistants may be added later: the rows that are there stay.
        changed = [name for name in inputs if name != "sources" and begun.get(name) != inputs[name]]
        changed += [f"assistant {name}" for name, source in inputs["sources"].items()
                    if begun["sources"].get(name, source) != source]
        if changed:
            raise UserError(f"{out} was begun with another {', '.join(changed)}: choose another "
                            "--out")
        inputs["sources"] = begun["sources"] | inputs["sources"]
    write_text(path, json.dumps(inputs, indent=2) + "\n")
    return out


def files_of(source):
    """The sizes and times of the files of a local checkpoint."""
    path = Path(source)
    files = [path] if is_gguf(path) else sorted(path.glob("*.safetensors"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


# ------------------------------------------------------------------- one row


def play_row(cfg, server, encoding, problems, name, assistant, out):
    """{problem: its line} of a row, played or read: a line is {id, episode, asked, unclear}."""
    path = out / "episodes" / f"{slug(name)}.jsonl"
    lines = {line["id"]: line for line in read_lines(
        path, ("id", "episode", "asked", "unclear"))}
    servers = [server, *([assistant.server] if isinstance(assistant, ServedAssistant) else [])]

    def episode(problem):
        human = HUMANS[cfg.human_kind](server, encoding, cfg.turn_tokens, cfg.temperature,
                                       cfg.seed)
        generator = torch_generator(cfg, f"{name} {problem.id}", pick_device(cfg.device))
        [played] = simhuman.play([f"{problem.statement}\n\n{problem.task}"], human, assistant,
                                 cfg.rounds, encoding.start, encoding.stops, generator, None)
        return {"id": problem.id, "episode": dataclasses.asdict(played), "asked": human.asked,
                "unclear": human.unclear}

    in_parallel([problem for problem in problems if problem.id not in lines], episode, path,
                cfg.parallel, name, servers)
    return {line["id"]: line for line in read_lines(path, ("id", "episode"))}


# ------------------------------------------------------------------- the table


def differences(cfg, played):
    """Each row minus the human alone and minus Base, in all metrics, with 95% intervals."""
    found = []
    for ours, theirs in ((a, b) for a in played for b in (ALONE, "Base") if b in played and a != b):
        for metric, value in report.metrics(cfg).items():
            a, b = ([value(episode) for episode in played[name]] for name in (ours, theirs))
            difference, low, high = report.paired_difference(
                a, b, cli.numpy_generator(cfg, "bootstrap"))
            found.append({"row": ours, "minus": theirs, "metric": metric,
                          "difference": difference, "low": low, "high": high})
    return found


def as_text(results):
    """The tables of the games."""
    columns = {header: template for header, template in report.RESULTS.items()
               if header != "share saved"}
    rows = {}
    for claim in results["claims"]:
        row = rows.setdefault((claim["row"], claim["minus"]), {
            "name": claim["row"], "minus": claim["minus"], "pass@1": "-", "accept_ratio": "-",
            "dpr": "-"})
        if claim["low"] is not None:
            row[claim["metric"]] = "{difference:+.3f} ({low:+.3f} to {high:+.3f})".format_map(claim)
    return "\n\n".join([
        f"The game on {results['problems']} problems with {results['human']}. Unclear: the share "
        "of her answers\nwithout a verdict, which count as rejections. Seeds: "
        f"{results['seeds']}. Programs could import\n" + (
            "the packages installed here." if results["config"]["packages"]
            else "the standard library alone."),
        report.table(results["rows"], {**columns, "unclear": "{unclear:.3f}"}),
        "Differences with 95% intervals (paired bootstrap over problems).",
        report.table(list(rows.values()), {"row": "{name}", "minus": "{minus}", **{
            report.METRICS[key]: f"{{{key}}}" for key in ("pass@1", "accept_ratio", "dpr")}})])
