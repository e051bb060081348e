"""Tests of `finetune`: what is learned, interruption, and the folder of the checkpoint."""

import re
import shlex
import shutil
import signal

import numpy as np
import pytest
import torch

import empower
from empower import score
from realcode import corpus as corpora
from realcode import finetune
from realcode.checkpoints import load_checkpoint
from realcode.corpus import read_programs
from realcode.given import given_model
from realcode.lora import add_lora
from realcode.memory import LABELS, training_bytes
from realcode.pretrained import PublishedConfig, new_model
from realcode.training import Progress
from support.cli import UserError
from support.files import read_safetensors
from support.test_helpers import (contents, family, forked, in_process, interrupt, published,
                                  small_corpus, tiny_gpt, weights)
from test_empower import algorithm_1

FINETUNE = shlex.split("--context 64 --batch 4 --micro-batch 2 --held-out 2 --lr 0.01 --eta 60 "
                       "--max-suggestion 8 --save-minutes 0 --device cpu")


def command(base, corpus, out, *flags):
    """The command line of a tiny `finetune`; later flags replace earlier ones."""
    return ["finetune", "--model", base, "--corpus", corpus, "--out", out, *FINETUNE, *flags]


def run(*arguments):
    """(exit status, stdout, stderr) of such a command."""
    return in_process(*command(*arguments))


def fine_tuned(*arguments):
    """What such a command printed; it has to succeed."""
    status, stdout, stderr = run(*arguments)
    assert status == 0, stderr
    return stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tuned(corpus, tmp_path_factory):
    """(base, what finetune made of it, what it printed)"""
    folder = tmp_path_factory.mktemp("finetune")
    base, out = published(folder / "base", dtype=torch.bfloat16), folder / "tuned"
    return base, out, fine_tuned(base, corpus, out)


def test_a_fine_tuned_checkpoint_is_as_complete_as_its_base(tuned, corpus, tmp_path):
    base, out, stdout = tuned
    before, after = contents(base), contents(out)
    assert after.keys() - before.keys() == {"inputs.json", "check.txt"}
    assert before.keys() < after.keys()
    assert [name for name in before if before[name] != after[name]] == [
        "config.json", "model.safetensors"]  # which name the type
    assert read_safetensors(base / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    head = read_safetensors(out / "model.safetensors")["lm_head.weight"]
    assert head.dtype == torch.float32 and not torch.equal(head, head.bfloat16().float())
    assert not torch.equal(weights(out), weights(base))
    assert not (out.parent / "tuned.partial").exists()
    loaded = load_checkpoint(out, "cpu")
    assert loaded.encoding.encode_ordinary("é = 1\n") == family("qwen").encode_ordinary("é = 1\n")
    assert f"--model {out} " in stdout
    fine_tuned(out, corpus, tmp_path / "twice", "--dtype", "float32")
    assert read_safetensors(tmp_path / "twice" / "model.safetensors")[
        "lm_head.weight"].dtype == torch.float32


def updates(stdout):
    """(updates, first losses, last losses) that finetune printed."""
    return tuple(map(float, re.search(r"(\d+) updates; loss from ([.\d]+) to ([.\d]+)",
                                      stdout).groups()))


def test_fine_tuning_lowers_the_loss(tuned):
    n, first, last = updates(tuned[2])
    assert n > 5 and last < first - 0.5


def examples_of(*arguments):
    """The examples on which `finetune` trains, without training."""
    def seen(model, examples, *rest, **options):
        found.extend(examples)
        return [0.0]

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "train_and_save", seen)
        fine_tuned(*arguments)
    return found


def scored(folder, corpus):
    """(checkpoint, pieces of the programs to learn from, their costs, held-out programs)"""
    base, (learned, unseen) = load_checkpoint(folder, "cpu"), read_programs(
        finetune.Config(corpus=str(corpus), held_out=2))
    pieces = corpora.cut(base.encoding, learned, 64)
    return (base, pieces, score(base.model, [ids for ids, _ in pieces], base.encoding.start),
            unseen)


def test_a_checkpoint_is_trained_on_prefix_completion_and_stop(corpus, tmp_path):
    folder = published(tmp_path / "base")
    base, pieces, costs, _ = scored(folder, corpus)
    start, stop = base.encoding.start, base.encoding.stop
    examples, seen = examples_of(folder, corpus, tmp_path / "a"), set()
    for (ids, first), (piece, ends), nll in zip(examples, pieces, costs, strict=True):
        n = first - 1
        completion = piece[n:n + algorithm_1(nll[n:], 60)]
        stops = ends or n + len(completion) < len(piece)
        assert ids == [start, *piece[:n], *completion, *[stop] * stops]
        seen.add((len(completion), stops))
    assert len(seen) > 3 and {stops for _, stops in seen} == {True, False}
    ten, drawn = (examples_of(folder, corpus, tmp_path / rule, "--rule", rule, "--max-suggestion",
                              31) for rule in ("sft-10", "sft-rand"))
    assert [ids[:first + 10] for ids, first in ten] == [
        [*ids[:first], *piece[first - 1:first + 9], *[stop] * ends][:first + 10]
        for (ids, first), (piece, ends) in zip(examples, pieces)]
    lengths = [len(ids) - first - 1 for ids, first in drawn]
    assert max(lengths) <= 30 and len(set(lengths)) > 10


def test_a_model_adapts_to_whole_pieces(corpus, tmp_path):
    folder = published(tmp_path / "base")
    base, learned, _, unseen = scored(folder, corpus)
    start, stop = base.encoding.start, base.encoding.stop
    assert examples_of(folder, corpus, tmp_path / "a", "--rule", "whole") == [
        ([start, *ids, *[stop] * ends], 1) for ids, ends in learned]
    limit = base.model.config.max_position_embeddings  # no suggestion needs room
    assert examples_of(folder, corpus, tmp_path / "d", "--rule", "whole", "--context", limit - 1)
    stdout = fine_tuned(folder, corpus, tmp_path / "b", "--rule", "whole", "--lora", 2)
    pieces = [ids for ids, _ in corpora.cut(base.encoding, unseen, 64)]
    before, after = (np.concatenate(score(load_checkpoint(some, "cpu").model, pieces, start)).mean()
                     for some in (folder, tmp_path / "b"))
    assert after < before - 0.5 and "--eta 60\n" in stdout and "Did it learn" not in stdout
    assert f"5 held-out pieces: {before:.2f} bits a token before, {after:.2f} now" in stdout


def test_all_states_of_each_piece_are_learned_at_once(corpus, tmp_path):
    folder = published(tmp_path / "base")
    base, pieces, costs, _ = scored(folder, corpus)
    examples = examples_of(folder, corpus, tmp_path / "a", "--all-states")
    for (ids, _, wanted), (piece, ends), nll in zip(examples, pieces, costs, strict=True):
        assert ids == [base.encoding.start, *piece, base.encoding.stop]
        lengths = [algorithm_1(nll[n:], 60) for n in range(len(piece))]
        stops = [sum(n + i == k for n, i in enumerate(lengths)) for k in range(len(piece) + 1)]
        stops[-1] *= ends
        assert (wanted[:, 1] / wanted[0].sum()).tolist() == pytest.approx(stops)  # one began at 0
    n, first, last = updates(fine_tuned(folder, corpus, tmp_path / "b", "--all-states"))
    assert n > 5 and last < first


# ------------------------------------------------------------------- interruption


@pytest.mark.parametrize("kind, flags", [("tuned", []), ("merged", ["--lora", 2])])
def test_an_interrupted_fine_tuning_goes_on_to_the_same_weights(
        request, corpus, tmp_path, monkeypatch, kind, flags):
    base, whole, printed = request.getfixturevalue(kind)
    out, work = tmp_path / "out", tmp_path / "out.partial" / "work"
    interrupt(monkeypatch, torch.Tensor, "backward", 6)  # the fourth update, of two micro-batches
    status, _, stderr = run(base, corpus, out, *flags)
    assert status == 130 and "run again to go on" in stderr and not out.exists()
    saved = torch.load(work / "progress.pt", weights_only=True)["parts"][0]
    assert saved and (not flags or all(name[-2:] in (".A", ".B") for name in saved))
    (work / "progress.pt.1.tmp").write_bytes(b"half")  # as if the computer had gone off
    (work / "costs-train" / "nll-0.npy.1.tmp").write_bytes(b"half")
    monkeypatch.undo()
    monkeypatch.setattr(np, "save", None)  # the costs are kept too
    stdout = fine_tuned(base, corpus, out, *flags, "--save-minutes", 9, "--recompute")
    assert "resuming in" in stdout and updates(stdout) == updates(printed)
    assert contents(out) == contents(whole) and not work.parent.exists()


def test_what_is_trained_is_kept_when_the_check_of_stopping_is_interrupted(
        tuned, corpus, tmp_path, monkeypatch):
    base, whole, printed = tuned
    out = tmp_path / "tuned"
    interrupt(monkeypatch, finetune, "check_stopping", 0)
    assert run(base, corpus, out, "--save-minutes", 9)[0] == 130 and not out.exists()
    monkeypatch.undo()
    interrupt(monkeypatch, torch.Tensor, "backward", 0)  # nothing is trained again
    stdout = fine_tuned(base, corpus, out)
    assert contents(out) == contents(whole)
    assert stdout[stdout.index("Did it"):].split("The check")[0] == (
        printed[printed.index("Did it"):].split("The check")[0])
    assert "It has not learned to stop" in stdout and f"--model {out} FILE:LINE:COL --eta" in stdout


@pytest.fixture
def ctrl_c():
    """Ctrl-C does what it does in a terminal, and does so again at the end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler


def test_ctrl_c_after_the_last_update_is_not_forgotten(tmp_path, ctrl_c):
    progress = Progress(tmp_path / "progress.pt", 9)
    with pytest.raises(KeyboardInterrupt), progress.saved_on_interrupt():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_saves_the_update_at_hand_and_a_second_ends_at_once(
        tuned, corpus, tmp_path, monkeypatch, ctrl_c, presses):
    base, whole, _ = tuned
    out, backward, calls = tmp_path / "tuned", torch.Tensor.backward, []

    def pressed(*arguments):
        calls.append(arguments)
        if len(calls) == 5:  # the third update, of two micro-batches
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return backward(*arguments)

    monkeypatch.setattr(torch.Tensor, "backward", pressed)
    assert run(base, corpus, out, "--save-minutes", 9)[0] == 130
    saved = tmp_path / "tuned.partial" / "work" / "progress.pt"
    assert saved.exists() == (presses == 1) and len(calls) == 7 - presses
    if presses == 1:
        assert len(torch.load(saved, weights_only=True)["losses"]) == 3
        monkeypatch.undo()
        fine_tuned(base, corpus, out)
        assert contents(out) == contents(whole)


def test_other_code_does_not_resume(tuned, corpus, tmp_path, monkeypatch):
    base, _, _ = tuned
    interrupt(monkeypatch, torch.Tensor, "backward", 2)
    assert run(base, corpus, tmp_path / "tuned")[0] == 130
    monkeypatch.undo()
    monkeypatch.setattr(empower, "learning_rate", lambda update, updates: 1)
    status, _, stderr = run(base, corpus, tmp_path / "tuned")
    assert status == 2 and "begun with another version of the code: choose" in stderr


def test_the_progress_of_another_model_is_refused(tmp_path):
    """Loading only the weights that are there would go on from untrained ones."""
    model, other = tiny_gpt(), tiny_gpt()
    add_lora(other, 2, torch.Generator())
    Progress(tmp_path / "progress.pt", -1).save([1.0], other)
    with pytest.raises(UserError, match="the weights of another model"):
        Progress(tmp_path / "progress.pt", -1).load(model)


# ------------------------------------------------------------------- the folder of the checkpoint


@pytest.mark.parametrize("flags, message", [
    (["--rule", "sft-10", "--max-suggestion", 10], "more than the 10 tokens of --rule sft-10"),
    (["--rule", "sft-rand", "--max-suggestion", 30], "more than the 30 tokens of --rule sft-rand"),
    (["--rule", "sft-0"], "choose empower, sft-rand, whole or sft-N"),
    (["--rule", "whole", "--all-states"], "leave it out with --rule whole"),
    (["--adapter"], "--adapter is for --lora"), (["--model", ""], "--model is missing")])
def test_flags_that_do_not_fit_are_refused(tmp_path, flags, message):
    status, _, stderr = run(tmp_path, tmp_path, tmp_path / "out", *flags)
    assert status == 2 and message in stderr and stderr.count("\n") == 1


def test_a_finished_checkpoint_is_left_alone(tuned, corpus):
    base, out, printed = tuned
    before = contents(out.parent)
    stdout = fine_tuned(base, corpus, out)
    assert "is finished: nothing is left to do" in stdout
    assert printed[printed.index("Did it"):] in stdout
    for flags, message in (
            (["--eta", "9"], "was begun with another --eta: choose another --out, or remove it"),
            (["--rule", "sft-7", "--lr", "1"], "was begun with another --rule, --lr: choose"),
            (["--out", str(corpus)], "holds something else: choose another --out"),
            (["--out", base], "holds something else: choose another --out"),
            (["--out", base / "config.json"], "holds something else: choose another --out")):
        status, _, stderr = run(base, corpus, out, *flags)
        slow, sentence = stderr.splitlines()
        assert status == 2 and "bfloat16" in slow and message in sentence
    assert contents(out.parent) == before


def test_the_same_model_from_elsewhere_or_touched_is_the_same_model(tuned, corpus, tmp_path):
    base, out, _ = tuned
    shutil.copytree(base, tmp_path / "copy")
    (base / "config.json").touch()
    for same in (base, tmp_path / "copy"):
        assert "is finished: nothing is left to do" in fine_tuned(same, corpus, out)
    weights = bytearray((tmp_path / "copy" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "copy" / "model.safetensors").write_bytes(weights)
    status, _, stderr = run(tmp_path / "copy", corpus, out)
    assert status == 2 and "was begun with another model" in stderr


def test_a_run_that_was_killed_after_its_folder_was_moved_is_finished(tuned, corpus, tmp_path):
    base, whole, _ = tuned
    out = shutil.copytree(whole, tmp_path / "tuned")
    (out / "work").mkdir()
    (out / "work" / "progress.pt").write_bytes(b"state")
    assert "is finished: nothing" in fine_tuned(base, corpus, out)
    assert contents(out) == contents(whole)


def test_two_fine_tunings_with_one_out_both_end_well(tuned, corpus, tmp_path, tmp_path_factory):
    base, whole, _ = tuned
    out = tmp_path / "tuned"
    arguments = (list(map(str, command(base, corpus, out))),)
    statuses, stdout, stderr = forked(tmp_path_factory.mktemp("logs"), empower.main,
                                      2 * [arguments])
    assert statuses == [0, 0], stderr
    assert stdout.count("is finished: nothing") == 1
    assert contents(out) == contents(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_an_out_that_cannot_be_renamed_to_is_refused_before_any_work(tmp_path):
    (tmp_path / "empty").mkdir()
    link = tmp_path / "link"
    link.symlink_to("empty")
    before = contents(tmp_path)
    status, _, stderr = run(tmp_path, tmp_path, link)
    assert status == 2 and stderr.count("\n") == 1 and "not a link or a mount point" in stderr
    assert contents(tmp_path) == before and link.is_symlink()


def test_some_pieces_of_a_single_file_are_held_out(tuned, corpus, tmp_path):
    base, _, _ = tuned
    one = tmp_path / "one.py"
    one.write_text("".join((corpus / f"{k}.py").read_text() for k in range(6)))
    stdout = fine_tuned(base, one, tmp_path / "tuned")
    assert re.search(r"no program can be held out; [1-9]\d* pieces? of programs that", stdout)
    assert re.search(r"Did it learn to stop\? On \d+ held-out pieces?, up to 8 tokens", stdout)
    pieces = corpora.cut(load_checkpoint(base, "cpu").encoding, [one.read_text()], 64)
    for rule in ("sft-2", "whole"):
        examples = examples_of(base, one, tmp_path / rule, "--rule", rule)
        assert len(examples) == len(pieces) - len(pieces) // 5


def test_a_model_adapts_to_a_single_short_program(tuned, tmp_path):
    (tmp_path / "one.py").write_text("x = 1\nprint(x)\n")
    stdout = fine_tuned(tuned[0], tmp_path / "one.py", tmp_path / "out", "--rule", "whole")
    assert "too small to hold anything out" in stdout and "1 update;" in stdout


# ------------------------------------------------------------------- low-rank updates, memory


@pytest.fixture(scope="module")
def merged(corpus, tmp_path_factory):
    """The same as `tuned`, with LoRA."""
    folder = tmp_path_factory.mktemp("lora")
    base, out = published(folder / "base"), folder / "tuned"
    return base, out, fine_tuned(base, corpus, out, "--lora", 2)


def test_lora_changes_projections_by_low_rank(merged):
    base, out, stdout = merged
    n, first, last = updates(stdout)
    assert last < first - 0.2
    before, after = (read_safetensors(folder / "model.safetensors") for folder in (base, out))
    for name in before:
        change = (after[name] - before[name]).float()
        assert (change.abs().max() > 0) == ("_proj.weight" in name), name
        if "_proj.weight" in name:
            assert torch.linalg.matrix_rank(change, atol=1e-5 * before[name].abs().max()) <= 2


def test_an_adapter_and_its_base_are_the_merged_checkpoint(merged, corpus, tmp_path):
    base, out, _ = merged
    assert "for PEFT" in fine_tuned(base, corpus, tmp_path / "adapter", "--lora", 2, "--adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "check.txt", "inputs.json"}
    adapter = read_safetensors(tmp_path / "adapter" / "adapter_model.safetensors")
    before, after = (read_safetensors(folder / "model.safetensors") for folder in (base, out))
    for name in [name for name in before if "_proj.weight" in name]:
        A, B = (adapter[f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight"]
                for part in "AB")
        assert torch.allclose(after[name], before[name] + 2 * B @ A, atol=1e-6)


def test_too_little_memory_is_said_before_any_work(merged, corpus, tmp_path, monkeypatch):
    base, _, stdout = merged
    assert re.search(r"Training takes about [.\d]+ GB of memory; [.\d]+ GB are free", stdout)
    monkeypatch.setattr(finetune, "available_bytes", lambda device: 1000)
    monkeypatch.setattr(corpora, "score", None)
    status, _, stderr = run(base, corpus, tmp_path / "out")
    assert status == 2 and stderr.count("\n") == 1 and "choose a smaller model" in stderr
    assert not list(tmp_path.iterdir())


def test_the_memory_is_that_before_the_model_is_loaded(merged, corpus, tmp_path, monkeypatch):
    base, loaded = merged[0], []
    needed = training_bytes(load_checkpoint(base, "cpu").model.config, micro_batch=2, context=64)
    monkeypatch.setattr(finetune, "given_model", lambda *some: loaded.append(some) or given_model(
        *some))
    monkeypatch.setattr(finetune, "available_bytes", lambda device: 1 if loaded else needed)
    fine_tuned(base, corpus, tmp_path / "out")


def test_short_programs_take_less_memory(capsys):
    """The start token comes before them, and fewer pieces than a micro-batch are one."""
    with torch.device("meta"):
        model, cfg = new_model(PublishedConfig(50_000, 2048, 8192)), finetune.Config(context=250)
    for lengths, context, examples in (([99] * 9, 100, 4), ([120] * 9, 121, 4), ([0] * 9, 16, 4),
                                       ([1, 250] * 9, 250, 4), ([250, 250, 99], 250, 3)):
        finetune.check_memory(cfg, model, "cpu", lengths, LABELS, None)
        needed = training_bytes(model.config, context=context, micro_batch=examples)
        assert f"takes about {needed / 1e9:.1f} GB" in capsys.readouterr().out
