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
from realcode.memory import training_bytes
from realcode.pretrained import PublishedConfig, new_model
from realcode.training import Progress
from support.cli import UserError
from support.files import read_safetensors
from support.test_helpers import (contents, family, forked, in_process, interrupt, published,
                             small_corpus, tiny_gpt, weights)
from test_empower import algorithm_1

FINETUNE = shlex.split("--context 64 --batch 4 --micro-batch 2 --held-out 2 --lr 0.01 --eta 60 "
                       "--max-suggestion 8 --save-minutes 0 --device cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def fine_tuned(folder, corpus, dtype, flags):
    """(base, what finetune made of it, what it printed)"""
    base, out = published(folder / "base", dtype=dtype), folder / "tuned"
    status, stdout, stderr = in_process("finetune", "--model", base, "--corpus", corpus, "--out",
                                        out, *flags)
    assert status == 0, stderr
    return base, out, stdout


@pytest.fixture(scope="module")
def tuned(corpus, tmp_path_factory):
    return fine_tuned(tmp_path_factory.mktemp("finetune"), corpus, torch.bfloat16, FINETUNE)


def test_a_fine_tuned_checkpoint_is_as_complete_as_its_base(tuned, corpus, tmp_path):
    base, out, stdout = tuned
    before, after = contents(base), contents(out)
    assert after.keys() - before.keys() == {"inputs.json", "check.txt"} and before.keys() < after.keys()
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
    status, printed, stderr = in_process("finetune", "--model", out, "--corpus", corpus, "--out",
                                         tmp_path / "twice", "--dtype", "float32", *FINETUNE)
    assert status == 0, stderr
    assert read_safetensors(tmp_path / "twice" / "model.safetensors")[
        "lm_head.weight"].dtype == torch.float32


def updates(stdout):
    """(updates, first losses, last losses) that finetune printed."""
    return tuple(map(float, re.search(r"(\d+) updates; loss from ([.\d]+) to ([.\d]+)",
                                      stdout).groups()))


def test_fine_tuning_lowers_the_loss(tuned):
    n, first, last = updates(tuned[2])
    assert n > 5 and last < first - 0.5


def examples_of(monkeypatch, *arguments):
    """The examples on which `finetune` trains, without training."""
    def seen(model, examples, *rest, **options):
        found.extend(examples)
        return [0.0]

    found = []
    monkeypatch.setattr(finetune, "train_and_save", seen)
    status, _, stderr = in_process("finetune", *arguments)
    assert status == 0, stderr
    return found


def test_a_checkpoint_is_trained_on_prefix_completion_and_stop(corpus, tmp_path, monkeypatch):
    folder = published(tmp_path / "base")
    arguments = "--model", folder, "--corpus", corpus, *FINETUNE
    base = load_checkpoint(folder, "cpu")
    learned, _ = read_programs(finetune.Config(corpus=str(corpus), held_out=2))
    pieces = corpora.cut(base.encoding, learned, 64)
    costs = score(base.model, [ids for ids, _ in pieces], base.encoding.start)
    examples = examples_of(monkeypatch, *arguments, "--out", tmp_path / "a")
    assert len(examples) == len(pieces) > 2 * len(learned)
    seen = set()
    for (ids, start), (piece, ends), nll in zip(examples, pieces, costs):
        n = start - 1
        completion = piece[n:n + algorithm_1(nll[n:], 60)]
        stop = ends or n + len(completion) < len(piece)
        assert ids == [base.encoding.start, *piece[:n], *completion, *[base.encoding.stop] * stop]
        seen.add((len(completion), stop))
    assert len(seen) > 3 and {stop for _, stop in seen} == {True, False}
    arguments = *arguments, "--max-suggestion", "31"
    ten = examples_of(monkeypatch, *arguments, "--out", tmp_path / "b", "--rule", "sft-10")
    assert [ids[:start + 10] for ids, start in ten] == [
        [*ids[:start], *piece[start - 1:start + 9], *[base.encoding.stop] * ends][:start + 10]
        for (ids, start), (piece, ends) in zip(examples, pieces)]
    drawn = [len(ids) - start - 1 for ids, start in examples_of(
        monkeypatch, *arguments, "--out", tmp_path / "c", "--rule", "sft-rand")]
    assert max(drawn) <= 30 and len(set(drawn)) > 10


def test_a_model_adapts_to_whole_pieces(corpus, tmp_path, monkeypatch):
    folder = published(tmp_path / "base")
    command = "--model", folder, "--corpus", corpus, *FINETUNE, "--rule", "whole"
    base, (learned, unseen) = load_checkpoint(folder, "cpu"), read_programs(
        finetune.Config(corpus=str(corpus), held_out=2))
    start, stop = base.encoding.start, base.encoding.stop
    assert examples_of(monkeypatch, *command, "--out", tmp_path / "a") == [
        ([start, *ids, *[stop] * ends], 1)
        for ids, ends in corpora.cut(base.encoding, learned, 64)]
    limit = base.model.config.max_position_embeddings  # no suggestion needs room
    assert examples_of(monkeypatch, *command, "--context", limit - 1, "--out", tmp_path / "d")
    monkeypatch.undo()
    status, stdout, stderr = in_process("finetune", *command, "--lora", 2, "--out",
                                        tmp_path / "b")
    assert status == 0, stderr
    pieces = [ids for ids, _ in corpora.cut(base.encoding, unseen, 64)]
    before, after = (np.concatenate(score(load_checkpoint(some, "cpu").model, pieces, start)).mean()
                     for some in (folder, tmp_path / "b"))
    assert after < before - 0.5 and "--eta 60\n" in stdout and "Did it learn" not in stdout
    assert f"5 held-out pieces: {before:.2f} bits a token before, {after:.2f} now" in stdout
    status, _, stderr = in_process("finetune", *command, "--all-states", "--out", tmp_path / "c")
    assert status == 2 and "leave it out with --rule whole" in stderr


def test_all_states_of_each_piece_are_learned_at_once(corpus, tmp_path, monkeypatch):
    folder = published(tmp_path / "base")
    command = "--model", folder, "--corpus", corpus, *FINETUNE, "--all-states"
    base = load_checkpoint(folder, "cpu")
    learned, _ = read_programs(finetune.Config(corpus=str(corpus), held_out=2))
    pieces = corpora.cut(base.encoding, learned, 64)
    costs = score(base.model, [ids for ids, _ in pieces], base.encoding.start)
    examples = examples_of(monkeypatch, *command, "--out", tmp_path / "a")
    monkeypatch.undo()
    for (ids, _, wanted), (piece, ends), nll in zip(examples, pieces, costs, strict=True):
        assert ids == [base.encoding.start, *piece, base.encoding.stop]
        lengths = [algorithm_1(nll[n:], 60) for n in range(len(piece))]
        stops = [sum(n + i == k for n, i in enumerate(lengths)) for k in range(len(piece) + 1)]
        stops[-1] *= ends
        assert (wanted[:, 1] / wanted[0].sum()).tolist() == pytest.approx(stops)  # one began at 0
    status, stdout, stderr = in_process("finetune", *command, "--out", tmp_path / "b")
    assert status == 0, stderr
    n, first, last = updates(stdout)
    assert n > 5 and last < first
    assert not (tmp_path / "b.partial").exists()


def test_an_interrupted_fine_tuning_goes_on_to_the_same_weights(
        tuned, corpus, tmp_path, monkeypatch):
    base, whole, printed = tuned
    out, partial = tmp_path / "tuned", tmp_path / "tuned.partial"
    command = "finetune", "--model", base, "--corpus", corpus, "--out", out, *FINETUNE
    interrupt(monkeypatch, torch.Tensor, "backward", 6)  # the fourth update, of two micro-batches
    status, _, stderr = in_process(*command)
    assert status == 130 and "run again to go on" in stderr
    assert not out.exists() and (partial / "work" / "progress.pt").exists()
    (partial / "work" / "progress.pt.1.tmp").write_bytes(b"half")  # as if the computer had gone off
    (partial / "work" / "costs-train" / "nll-0.npy.1.tmp").write_bytes(b"half")
    monkeypatch.undo()
    monkeypatch.setattr(np, "save", None)  # the costs are kept too
    status, stdout, stderr = in_process(*command, "--save-minutes", "9", "--recompute")
    assert status == 0 and "resuming in" in stdout, stderr
    assert contents(out) == contents(whole) and not partial.exists()
    assert updates(stdout) == updates(printed)


def test_what_is_trained_is_kept_when_the_check_of_stopping_is_interrupted(
        tuned, corpus, tmp_path, monkeypatch):
    base, whole, printed = tuned
    out = tmp_path / "tuned"
    command = ("finetune", "--model", base, "--corpus", corpus, "--out", out, *FINETUNE,
               "--save-minutes", "9")
    interrupt(monkeypatch, finetune, "check_stopping", 0)
    status, _, _ = in_process(*command)
    assert status == 130 and not out.exists()
    monkeypatch.undo()
    interrupt(monkeypatch, torch.Tensor, "backward", 0)  # nothing is trained again
    status, stdout, stderr = in_process(*command)
    assert status == 0 and contents(out) == contents(whole), stderr
    assert stdout[stdout.index("Did it"):].split("The check")[0] == (
        printed[printed.index("Did it"):].split("The check")[0])
    assert "It has not learned to stop" in stdout and f"--model {out} FILE:LINE:COL --eta" in stdout


def test_ctrl_c_after_the_last_update_is_not_forgotten(tmp_path):
    progress = Progress(tmp_path / "progress.pt", 9)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), progress.saved_on_interrupt():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_saves_the_update_at_hand_and_a_second_ends_at_once(
        tuned, corpus, tmp_path, monkeypatch, presses):
    base, whole, _ = tuned
    out, backward, calls = tmp_path / "tuned", torch.Tensor.backward, []
    command = ("finetune", "--model", base, "--corpus", corpus, "--out", out, *FINETUNE,
               "--save-minutes", "9")

    def pressed(*arguments):
        calls.append(arguments)
        if len(calls) == 5:  # the third update, of two micro-batches
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return backward(*arguments)

    monkeypatch.setattr(torch.Tensor, "backward", pressed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, _, stderr = in_process(*command)
        assert status == 130 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    saved = tmp_path / "tuned.partial" / "work" / "progress.pt"
    assert saved.exists() == (presses == 1) and len(calls) == 7 - presses
    if presses == 1:
        assert len(torch.load(saved, weights_only=True)["losses"]) == 3
        monkeypatch.undo()
        assert in_process(*command)[0] == 0 and contents(out) == contents(whole)


def test_a_check_that_could_not_tell_is_refused(tmp_path):
    for rule, n in (("sft-10", 10), ("sft-rand", 30)):
        with pytest.raises(UserError, match=f"more than the {n} tokens of --rule {rule}"):
            finetune.finetune(finetune.Config(out=str(tmp_path / "out"), model="m", rule=rule,
                                              max_suggestion=n, all_states=True))


def test_a_finished_checkpoint_is_left_alone(tuned, corpus):
    base, out, printed = tuned
    before = contents(out.parent)
    command = "finetune", "--model", base, "--corpus", corpus, "--out", out, *FINETUNE
    status, stdout, _ = in_process(*command)
    assert status == 0 and "is finished: nothing is left to do" in stdout
    assert printed[printed.index("Did it"):] in stdout
    for flags, message in (
            (["--eta", "9"], "was begun with another --eta: choose another --out, or remove it"),
            (["--rule", "sft-7", "--lr", "1"], "was begun with another --rule, --lr: choose"),
            (["--out", str(corpus)], "holds something else: choose another --out"),
            (["--out", base], "holds something else: choose another --out"),
            (["--out", base / "config.json"], "holds something else: choose another --out")):
        status, _, stderr = in_process(*command, *flags)
        slow, sentence = stderr.splitlines()
        assert status == 2 and "bfloat16" in slow and message in sentence
    assert contents(out.parent) == before


def test_a_run_that_was_killed_after_its_folder_was_moved_is_finished(tuned, corpus, tmp_path):
    base, whole, _ = tuned
    out = shutil.copytree(whole, tmp_path / "tuned")
    (out / "work").mkdir()
    (out / "work" / "progress.pt").write_bytes(b"state")
    status, stdout, stderr = in_process("finetune", "--model", base, "--corpus", corpus, "--out",
                                        out, *FINETUNE)
    assert status == 0 and "is finished: nothing" in stdout, stderr
    assert contents(out) == contents(whole)


def test_other_code_does_not_resume(tuned, corpus, tmp_path, monkeypatch):
    base, _, _ = tuned
    command = ("finetune", "--model", base, "--corpus", corpus, "--out", tmp_path / "tuned",
               *FINETUNE)
    interrupt(monkeypatch, torch.Tensor, "backward", 2)
    assert in_process(*command)[0] == 130
    monkeypatch.undo()
    monkeypatch.setattr(empower, "learning_rate", lambda update, updates: 1)
    status, _, stderr = in_process(*command)
    assert status == 2 and "begun with another version of the code: choose" in stderr


def test_two_fine_tunings_with_one_out_both_end_well(tuned, corpus, tmp_path, tmp_path_factory):
    base, whole, _ = tuned
    out = tmp_path / "tuned"
    command = ["finetune", "--model", base, "--corpus", corpus, "--out", out, *FINETUNE]
    statuses, stdout, stderr = forked(tmp_path_factory.mktemp("logs"), empower.main,
                                      2 * [(list(map(str, command)),)])
    assert statuses == [0, 0], stderr
    assert stdout.count("is finished: nothing") == 1
    assert contents(out).keys() == contents(whole).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_an_out_that_cannot_be_renamed_to_is_refused_before_any_work(tuned, corpus, tmp_path,
                                                                     monkeypatch):
    base, _, _ = tuned
    (tmp_path / "empty").mkdir()
    link = tmp_path / "link"
    link.symlink_to("empty")
    before = contents(tmp_path)
    monkeypatch.setattr(corpora, "score", None)  # where the work begins
    status, _, stderr = in_process("finetune", "--model", base, "--corpus", corpus, "--out", link,
                                   *FINETUNE)
    assert status == 2 and stderr.count("\n") == 1 and "not a link or a mount point" in stderr
    assert contents(tmp_path) == before and link.is_symlink()


def test_some_pieces_of_a_single_file_are_held_out(tuned, corpus, tmp_path, monkeypatch):
    base, _, _ = tuned
    one = tmp_path / "one.py"
    one.write_text("".join((corpus / f"{k}.py").read_text() for k in range(6)))
    status, stdout, stderr = in_process("finetune", "--model", base, "--corpus", one, "--out",
                                        tmp_path / "tuned", *FINETUNE)
    assert status == 0, stderr
    assert re.search(r"no program can be held out; [1-9]\d* pieces? of programs that", stdout)
    assert re.search(r"Did it learn to stop\? On \d+ held-out pieces?, up to 8 tokens", stdout)
    pieces = corpora.cut(load_checkpoint(base, "cpu").encoding, [one.read_text()], 64)
    for rule in ("sft-2", "whole"):
        examples = examples_of(monkeypatch, "--model", base, "--corpus", one, "--out",
                               tmp_path / rule, *FINETUNE, "--rule", rule)
        assert len(examples) == len(pieces) - len(pieces) // 5


# ------------------------------------------------------------------- low-rank updates, memory


LORA = [*FINETUNE, "--lora", "2"]


@pytest.fixture(scope="module")
def merged(corpus, tmp_path_factory):
    return fine_tuned(tmp_path_factory.mktemp("lora"), corpus, torch.float32, LORA)


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
    status, stdout, stderr = in_process("finetune", "--model", base, "--corpus", corpus, "--out",
                                        tmp_path / "adapter", *LORA, "--adapter")
    assert status == 0 and "for PEFT" in stdout, stderr
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "check.txt", "inputs.json"}
    adapter = read_safetensors(tmp_path / "adapter" / "adapter_model.safetensors")
    before, after = (read_safetensors(folder / "model.safetensors") for folder in (base, out))
    for name in [name for name in before if "_proj.weight" in name]:
        A, B = (adapter[f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight"]
                for part in "AB")
        assert torch.allclose(after[name], before[name] + 2 * B @ A, atol=1e-6)


def test_interrupted_lora_goes_on_to_the_same_weights(merged, corpus, tmp_path, monkeypatch):
    base, whole, printed = merged
    out = tmp_path / "merged"
    command = "finetune", "--model", base, "--corpus", corpus, "--out", out, *LORA
    interrupt(monkeypatch, torch.Tensor, "backward", 6)
    assert in_process(*command)[0] == 130
    saved = torch.load(f"{out}.partial/work/progress.pt", weights_only=True)["parts"][0]
    assert saved and all(name[-2:] in (".A", ".B") for name in saved)  # not the frozen weights
    monkeypatch.undo()
    status, stdout, stderr = in_process(*command)
    assert status == 0 and "resuming in" in stdout, stderr
    assert contents(out) == contents(whole) and updates(stdout) == updates(printed)


def test_the_progress_of_another_model_is_refused(tmp_path):
    """Loading only the weights that are there would go on from untrained ones."""
    model, other = tiny_gpt(), tiny_gpt()
    add_lora(other, 2, torch.Generator())
    Progress(tmp_path / "progress.pt", -1).save([1.0], other)
    with pytest.raises(UserError, match="the weights of another model"):
        Progress(tmp_path / "progress.pt", -1).load(model)


def test_too_little_memory_is_said_before_any_work(merged, corpus, tmp_path, monkeypatch):
    base, _, stdout = merged
    assert re.search(r"Training takes about [.\d]+ GB of memory; [.\d]+ GB are free", stdout)
    monkeypatch.setattr(finetune, "available_bytes", lambda device: 1000)
    monkeypatch.setattr(corpora, "score", None)
    status, _, stderr = in_process("finetune", "--model", base, "--corpus", corpus, "--out",
                                   tmp_path / "out", *FINETUNE)
    assert status == 2 and stderr.count("\n") == 1 and "choose a smaller model" in stderr
    assert not list(tmp_path.iterdir())


def test_the_memory_is_that_before_the_model_is_loaded(merged, corpus, tmp_path, monkeypatch):
    base, *_ = merged
    model, loaded = load_checkpoint(base, "cpu", torch.float32).model, []
    needed = training_bytes(model.config, micro_batch=2, context=64, labels=64)
    monkeypatch.setattr(finetune, "given_model", lambda *some: loaded.append(some) or given_model(
        *some))
    monkeypatch.setattr(finetune, "available_bytes", lambda device: 1 if loaded else needed)
    status, _, stderr = in_process("finetune", "--model", base, "--corpus", corpus, "--out",
                                   tmp_path / "out", *FINETUNE)
    assert status == 0, stderr
    with pytest.raises(UserError, match="but only"):
        finetune.check_memory(finetune.Config(context=64, micro_batch=2), model, "cpu",
                              [64] * 9, needed / 2)


def test_short_programs_take_less_memory(capsys):
    """The start token comes before them."""
    with torch.device("meta"):
        model, cfg = new_model(PublishedConfig(50_000, 2048, 8192)), finetune.Config(context=250)
    for length, context in ((99, 100), (120, 121), (0, 16), (250, 250)):
        finetune.check_memory(cfg, model, "cpu", [1, length] * 9, None)
        needed = training_bytes(model.config, context=context, micro_batch=4)
        assert f"takes about {needed / 1e9:.1f} GB" in capsys.readouterr().out
    assert needed > 1.05 * training_bytes(model.config, context=121, micro_batch=4)
    finetune.check_memory(cfg, model, "cpu", [250, 250, 99], None)  # fewer than a micro-batch
    needed = training_bytes(model.config, context=250, micro_batch=3)
    assert f"takes about {needed / 1e9:.1f} GB" in capsys.readouterr().out


def test_an_adapter_needs_lora(tmp_path):
    status, _, stderr = in_process("finetune", "--model", tmp_path, "--corpus", tmp_path, "--out",
                                   tmp_path / "out", "--adapter")
    assert status == 2 and "--adapter is for --lora" in stderr
