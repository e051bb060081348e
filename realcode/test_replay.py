"""Tests of the replayed author and of `replay`."""

import contextlib
import json
import math
import re
import shlex
import types

import numpy as np
import pytest
import torch

import data
from model import GPT, KVCache, extend, sample
from realcode import replay
from realcode.checkpoints import load_checkpoint
from realcode.corpus import pieces, read_programs
from realcode.replay import Config, ReplayedAuthor, cut_at_end
from simhuman import Assistant, Episode, Turn, play
from support.files import slug
from support.test_helpers import (contents, family, in_process, interrupt, published, random_texts,
                             small_corpus, stable, tiny_gpt, tiny_run,
                             write_files)
from test_empower import moves, play_slowly

REPLAY = shlex.split("--width 32 --layers 1 --vocab-size 300 --pretrain-tokens 15000 --context 64 "
                     "--pretrain-batch 4 --pretrain-lr 0.15 --sft-batch 4 --max-suggestion 8 "
                     "--eta 1 --device cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


# ------------------------------------------------------------------- the author


def test_an_author_is_replayed_problem_by_problem_and_in_lockstep():
    model, programs = tiny_gpt(4), random_texts([40, 7, 1, 90, 55, 33])
    for program in programs[::2]:  # the assistant is right about their second half
        new, _ = sample(model, KVCache(model, 1), [[0, *program]], 30, 0, temperature=0)
        program += new[0]
    assistant = Assistant(model, 6, max_cost=20, temperature=0)
    game = programs, ReplayedAuthor(3, list(map(len, programs))), assistant, 100, 0
    fast, slow = play(*game, 0, None), play_slowly(*game)
    assert [moves(episode) for episode in fast] == [moves(episode) for episode in slow]
    assert sum(e.accepted for e in slow) and sum(e.offered - e.accepted for e in slow)
    assert [episode.code for episode in fast] == programs and all(e.finished for e in fast)


def test_an_author_accepts_what_comes_next_and_nothing_else():
    author = ReplayedAuthor(2, [4] * 5)
    author.begin([[1, 2, 3, 4]] * 5)
    suggestions = [[2, 3], [2, 4], [], [2, 3, 4], [2, 3, 4, 5]]
    assert author.read([[1]] * 5, suggestions) == [
        ([], True), ([], False), ([], False), ([], True), ([], False)]
    codes = [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], []]
    assert author.type(codes, None, None) == (
        [[2, 3], [3, 4], [4], [], [1, 2]], [False, True, True, True, False])


def test_an_author_of_a_piece_compares_with_what_follows_it_and_stops_at_its_end():
    author = ReplayedAuthor(2, [3, 3, 3])
    author.begin([[1, 2, 3, 4, 5]] * 3)
    assert author.read([[1, 2]] * 3, [[3, 4], [3, 5], [3]]) == [([], True), ([], False),
                                                                 ([], True)]
    assert author.type([[1, 2, 3, 4], [1, 2], [1]], None, None) == ([[], [3], [2, 3]],
                                                                     [True, True, True])


# ------------------------------------------------------------------- the command


def test_the_weights_of_an_assistant_are_packed_while_it_plays(monkeypatch):
    used, game = [], replay.play

    @contextlib.contextmanager
    def recorded(*models):
        used.append(models)
        yield
        used.append("end")

    monkeypatch.setattr(replay, "packed", recorded)
    monkeypatch.setattr(replay, "play", lambda *arguments: (
        used.append("game"), game(*arguments))[1])
    encoding, model = types.SimpleNamespace(start=0, stops=[0]), tiny_gpt()
    for assistant, models in ((None, ()), (Assistant(model, 3), (model,))):
        used.clear()
        replay.replayed_game(Config(), "a row", encoding, [[1, 2, 3]], [3], assistant)
        assert used == [models, "game", "end"]
    model.norm.weight.data.fill_(math.inf)
    with pytest.raises(ArithmeticError, match="are not numbers"):
        replay.replayed_game(Config(), "a row", encoding, [[1, 2, 3]], [3], Assistant(model, 3))


@pytest.fixture(scope="module")
def replayed(corpus, tmp_path_factory):
    """The folder of a finished replay of the corpus, and what the run printed."""
    out = tmp_path_factory.mktemp("replay") / "out"
    status, stdout, stderr = in_process("replay", "--corpus", corpus, "--out", out, *REPLAY)
    assert status == 0, stderr
    return out, stdout


def rows_of(out):
    return {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}


def test_a_replay_makes_the_paper_s_rows_and_the_run_s_fields(replayed, tmp_path):
    out, stdout = replayed
    assert "25 programs of 26 in" in stdout and ": 1 duplicate\n" in stdout
    assert list(rows_of(out)) == [
        "Human alone", "Base", "Base-4", "Base-8", "Base stopped at 1 bits", "SFT-4", "SFT-8",
        "SFT-RAND", "Empower (1)", "Empower (4)"]
    assert all(f"| {name} " in stdout for name in rows_of(out))
    assert "tokens on average; with so few, the intervals mean little" in stdout
    assert "The game on 5 held-out programs." in stdout
    assert "on pieces held out of fine-tuning, often of programs learned from;" in stdout
    results, other = (json.loads((folder / "results.json").read_text())
                      for folder in (out, tiny_run(tmp_path)[0]))
    assert results.keys() == other.keys() - {"less attentive"} and results["problems"] == 5
    assert results["rows"][0].keys() == other["rows"][0].keys() - {"pass@1", "pass@1_se"}
    assert "pass@1" not in json.dumps(results).lower() and "Pass@1" not in stdout
    assert [(claim["baseline"], claim["metric"]) for claim in results["claims"]] == [
        (baseline, metric) for baseline in [*list(rows_of(out))[:8], "Empower (4)"]
        for metric in ("share_saved", "accept_ratio", "dpr")]


def episodes_in(out, name):
    [folder] = (out / "stages").glob(f"row-{slug(name)}-??????????")
    return list(map(Episode.from_dict, json.loads((folder / "value.json").read_text())))


def test_every_replayed_episode_ends_with_the_program_that_was_written(replayed, corpus):
    out, _ = replayed
    cfg = Config(corpus=str(corpus), context=64)
    _, held_out = read_programs(cfg)
    [base] = (out / "stages").glob("base-*")
    goals, ends = replay.drawn_goals(cfg, load_checkpoint(base, "cpu"), held_out)
    assert max(ends) <= 64 < max(map(len, goals))  # what follows a piece is there too
    for name, row in rows_of(out).items():
        episodes = episodes_in(out, name)
        assert [episode.code for episode in episodes] == [
            goal[:end] for goal, end in zip(goals, ends)]
        saved = sum(episode.tokens_accepted for episode in episodes)
        assert row["share_saved"] == saved / sum(ends)
        assert row["dpr"] == np.mean([0.999 ** (0.1 * e.tokens_read + 0.5 * e.tokens_written)
                                      for e in episodes])  # every program is right in the end
    rows = rows_of(out)
    assert rows["Human alone"]["tokens_written"] == np.mean(ends)
    assert rows["Human alone"]["share_saved"] == 0 < max(
        row["share_saved"] for row in rows.values())


def test_a_claim_is_the_difference_of_its_two_rows(replayed):
    out, _ = replayed
    rows, results = rows_of(out), json.loads((out / "results.json").read_text())
    for claim in results["claims"]:
        ours, theirs = (rows[name][claim["metric"]] for name in ("Empower (1)", claim["baseline"]))
        assert claim["difference"] == (None if None in (ours, theirs) else
                                       pytest.approx(ours - theirs))


def test_what_is_beyond_the_end_of_a_piece_is_not_counted():
    turns = [Turn([1, 2], [], True, [3]), Turn([4, 5, 6, 7], [], True, [])]
    found = cut_at_end(Episode(0, turns, finished=True), 5)
    assert found.code == [1, 2, 3, 4, 5] and found.passed
    assert found.tokens_accepted == found.tokens_read == 4 and found.tokens_written == 1
    rejected = Episode(0, [Turn([9, 9], [], False, [1, 2])])
    assert cut_at_end(rejected, 5) == Episode(0, [Turn([9, 9], [], False, [1, 2])])


def test_an_interrupted_replay_goes_on_to_the_same_results(replayed, corpus, tmp_path, monkeypatch):
    out = tmp_path / "again"
    command = "replay", "--corpus", corpus, "--out", out, *REPLAY
    interrupt(monkeypatch, torch.optim.AdamW, "__init__", 4)  # of the base and of three assistants
    status, _, stderr = in_process(*command)
    assert status == 130 and "run again to go on" in stderr and not list(out.rglob("*.tmp"))
    monkeypatch.undo()
    status, stdout, _ = in_process(*command)
    assert status == 0 and stable(out) == stable(replayed[0])
    assert re.findall(r"  (.*): reused", stdout) == ["base", "SFT-4", "SFT-8", "SFT-RAND"]


def test_a_finished_replay_is_reused(replayed, corpus):
    out, _ = replayed
    before = stable(out)
    status, stdout, _ = in_process("replay", "--corpus", corpus, "--out", out, *REPLAY)
    assert status == 0 and stable(out) == before
    assert "kept in" not in stdout and stdout.count(": reused from") == 1 + 5 + 5 + 10


def test_a_replay_is_shown_on_the_page(replayed):
    """Its assistants can be tried; the page has no statements to go with its episodes."""
    from page.offered import find_offer
    from page.server import Config as Page
    offer = find_offer(Page(out=str(replayed[0]), device="cpu"))
    assert {"SFT-4", "Empower (1)"} <= offer.models.choices.keys()
    assert offer.games["problems"] == []


@pytest.mark.parametrize("arguments, message", [
    (["--held-out", "1"], "--held-out is 1"), ([], "that do not resemble each other")])
def test_too_few_programs_to_hold_out_is_one_sentence(tmp_path, arguments, message):
    program = "".join(f"line number {k}\n" for k in range(30))
    write_files(tmp_path, {f"{k}.py": program + f"the last is {k}\n" for k in range(12)})
    status, _, stderr = in_process("replay", "--corpus", tmp_path, "--out", tmp_path / "out",
                                   *REPLAY, *arguments)
    assert status == 2 and message in stderr and stderr.count("\n") == 1


def test_a_corpus_is_split_by_program_and_by_seed(tmp_path):
    for k in range(25):
        (tmp_path / f"{k}.py").write_text(f"x = {k}\n")

    def split(seed, held_out):
        return read_programs(Config(corpus=str(tmp_path), seed=seed, held_out=held_out))

    learned, held_out = split(0, 100)
    assert len(learned) == 20 and len(held_out) == 5  # a fifth at most
    assert len({*learned, *held_out}) == 25
    assert split(0, 100) == (learned, held_out) != split(1, 100)
    assert len(split(0, 3)[1]) == 3


def test_a_small_gpt_reads_a_stop_token_where_a_program_ends_and_nowhere_else():
    texts, expected = [f"x = {n}\n" * (3 * n) for n in range(1, 6)], []
    encoding = data.train_tokenizer(texts, 257)
    for text in texts:
        *parts, last = pieces(encoding, text, 16)
        expected += [[encoding.start, *part] for part in parts]
        expected.append([encoding.start, *last, encoding.stop])
    for passes in (1, 3):
        cfg = Config(context=16, vocab_size=257, pretrain_tokens=passes * sum(map(len, expected)))
        documents = replay.documents(cfg, encoding, texts)
        assert len(documents) == passes * len(expected)
        for k in range(passes):
            part = documents[k * len(expected):][:len(expected)]
            assert sorted(part) == sorted(expected) and part != expected


@pytest.mark.parametrize("name", ["qwen", "llama3"])
def test_a_replay_of_a_published_model_begins_with_bos_and_writes_no_id_without_a_token(
        name, corpus, tmp_path, monkeypatch):
    folder, encoding, fed, first = published(tmp_path / "model", name), family(name), [], set()
    hidden = GPT.hidden

    def seen_hidden(self, ids, cache=None):
        fed.append(int(ids.max()))
        first.update([] if cache else ids[:, 0].tolist())
        return hidden(self, ids, cache)

    def seen_extend(network, cache, texts, more=None):
        first.update(text[0] for text in texts)
        return extend(network, cache, texts, more)

    monkeypatch.setattr(GPT, "hidden", seen_hidden)
    monkeypatch.setattr("model.extend", seen_extend)
    status, _, stderr = in_process(
        "replay", "--corpus", corpus, "--model", folder, "--out", tmp_path / "out", "--context",
        "64", "--train-programs", "10", "--held-out", "2", "--max-suggestion", "4", "--device",
        "cpu")
    assert status == 0, stderr
    assert first == {encoding.start} and (name == "qwen") == (encoding.bos is None)
    assert max(fed) < encoding.n_vocab
    assert rows_of(tmp_path / "out")["Base"]["suggestion_length"] > 1
    base, assistant = (tmp_path / "model"), next((tmp_path / "out" / "stages").glob("empower-4-*"))
    assert contents(base).keys() == contents(assistant).keys()


def test_a_model_in_another_dtype_is_another_model(tmp_path):
    published(tmp_path)
    names = [load_checkpoint(tmp_path, "cpu", dtype).name
             for dtype in (None, torch.bfloat16, torch.bfloat16)]
    assert names[0] != names[1] == names[2]  # so it has its own costs and games
