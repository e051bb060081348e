"""Tests of corpora: what is read, what is left out, and how they are split."""

import itertools
import ast
import gzip
import json
import random

import pytest

import data
from realcode import corpus
from realcode.corpus import near_duplicates, read_corpus, split_corpus
from support.contest import draw_style, write_program
from support.test_helpers import ROOT, small_contest, tokenizer, write_files

def write_rows(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n"
                            for row in rows))
    return path


@pytest.mark.parametrize("row, program, with_statement", [
    ({"text": "b", "content": "a"}, "a\n", "# b\na\n"),
    ({"text": "an essay", "program": "a = 1"}, "a = 1\n", "# an essay\na = 1\n"),
    ({"prompt": " ", "text": "Add.", "code": "a + b"}, "a + b\n", "# Add.\na + b\n"),
    ({"prompt": "Add.", "text": "a + b"}, "a + b\n", "# Add.\na + b\n"),
    ({"prompt": "Add.\nTwo.\n\nDone.", "code": "a + b"}, "a + b\n",
     "# Add.\n# Two.\n#\n# Done.\na + b\n"),
    ({"question": "def f(x):\n", "canonical_solution": "    return x\n"},
     "def f(x):\n    return x\n", "def f(x):\n    return x\n"),  # as in HumanEval
    ({"prompt": "x = 1\n", "code": "y = 2"}, "y = 2\n", "# x = 1\ny = 2\n"),
    # A parser of today's Python would not know that these begin with their prompts.
    ({"prompt": "def f[T](x: T):\n", "code": "    return x\n"}, "def f[T](x: T):\n    return x\n",
     "def f[T](x: T):\n    return x\n"),
    ({"prompt": "def f(x):\n    \"\"\"Print it.\"\"\"\n", "code": "    print x\n"},
     'def f(x):\n    """Print it."""\n    print x\n',
     'def f(x):\n    """Print it."""\n    print x\n'),
    ({"prompt": "// Add.\nint add(int a) {\n", "code": "  return a;\n}\n"},
     "// Add.\nint add(int a) {\n  return a;\n}\n", "// Add.\nint add(int a) {\n  return a;\n}\n"),
    ({"prompt": "def f(x):\n", "code": "    if x:\n        y = ("},
     "def f(x):\n    if x:\n        y = (\n", "def f(x):\n    if x:\n        y = (\n"),
    ({"prompt": "Print the following:", "code": "a + b"}, "a + b\n",
     "# Print the following:\na + b\n"),
    ({"prompt": "def f(x):\n    \"\"\"Sum.\"\"\"\n", "code": "def f(x):\n    return x\n"},
     "def f(x):\n    return x\n",
     '# def f(x):\n#     """Sum."""\ndef f(x):\n    return x\n'),
    ({"description": "Add.", "completion": "    a +"}, "    a +\n", "# Add.\n    a +\n"),
    ({"prompt": None, "solution": "a"}, "a\n", "a\n"),
])
def test_a_statement_is_left_out_unless_asked_for(tmp_path, row, program, with_statement):
    path = write_rows(tmp_path / "rows.jsonl", row)
    assert read_corpus(path)[0] == [program]
    assert read_corpus(path, statements=True)[0] == [with_statement]


def test_a_folder_is_a_corpus(tmp_path):
    write_files(tmp_path, {
        "b.py": "x = 1\r\ny = 2\r\n\r\n", "a/c.py": "x = 1\ny = 2", "a/d.py": b"\xef\xbb\xbfz\rw",
        "a/bad.py": b"s = '\xe9'\n", "empty.py": "\n", "note.txt": "", ".git/e.py": "hidden = 1",
        "lib/site-packages/f.py": "g = 1", "__pycache__/g.py": "g = 2", "long.py": "x" * 400_001,
        "m.PY": b"# coding: latin-1\ns = '\xe9'\n", "n.pyw": "w = 1\n", "o.ipynb": json.dumps({
            "cells": [{"cell_type": "code", "source": ["a = 1\n", "b"]}, {
                "cell_type": "markdown", "source": "c"}, {"cell_type": "code", "source": "d"}]}),
        "p.ipynb": "{}", "q.py": "# coding: none\n", "r.py": b"\xff"})
    programs, report = read_corpus(tmp_path)
    assert programs == ["x = 1\ny = 2\n", "z\nw\n", "# coding: latin-1\ns = 'é'\n", "w = 1\n",
                        "a = 1\nb\n\nd\n"]
    bad = [tmp_path / name for name in ("a/bad.py", "p.ipynb", "q.py")]
    assert report == (f"5 programs of 12 in {tmp_path}: 1 duplicate, 1 empty, 4 unreadable, "
                      "1 longer than 400,000 characters (unreadable: "
                      f"{', '.join(map(str, bad))}, ...)")
    assert read_corpus(tmp_path / "b.py") == (
        ["x = 1\ny = 2\n"], f"1 program of 1 in {tmp_path / 'b.py'}")


def test_rows_without_a_program_are_counted(tmp_path):
    path = write_rows(tmp_path / "rows.ndjson", {"code": "a"}, {"code": "b", "text": "c"}, "{", "",
                      {"code": "a\r\n"}, {"code": 3}, {"code": " "}, {}, "[]", {"code": "\ud800"})
    assert read_corpus(path) == (["a\n", "b\n"], f"2 programs of 9 in {path} (field code): "
                                                      "1 duplicate, 1 empty, 5 unreadable")
    programs, report = read_corpus(path, field="text")
    assert programs == ["c\n"] and "1 program of 9" in report and "(field text)" in report
    (tmp_path / "list.json").write_bytes(b'\xef\xbb\xbf[{"code": "a"},\n {"code": "b"}]')
    assert read_corpus(tmp_path / "list.json")[0] == ["a\n", "b\n"]
    (tmp_path / "list.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1}\n{"code": "a"}\n'))
    assert read_corpus(tmp_path / "list.jsonl.gz")[0] == ["a\n"]  # though the first row lacks it
    (tmp_path / "one.json").write_text('{\n  "code": "a"\n}\n')
    assert read_corpus(tmp_path / "one.json")[0] == ["a\n"]


def test_flags_without_an_effect_are_refused(tmp_path):
    write_files(tmp_path, {"a.py": "x = 1\n"})
    for options in ({"field": "code"}, {"statements": True}):
        with pytest.raises(ValueError, match="has no fields: leave out --field and --statements"):
            read_corpus(tmp_path, **options)
        with pytest.raises(ValueError, match="stdlib has no fields"):
            read_corpus("stdlib", **options)
    path = write_rows(tmp_path / "rows.jsonl", {"code": "a", "title": "b"}, {"code": "c"})
    with pytest.raises(ValueError, match="has a statement .*: leave out --statements"):
        read_corpus(path, statements=True)


@pytest.mark.parametrize("name, content, message", [
    ("absent", None, "there is no .*absent: name"),
    ("rows.jsonl", '{"id": 1, "body": "x"}', "no field code, .*; its first row has id, body: name"),
    ("rows.jsonl", "", "holds no JSON object, or is damaged: give one object a line"),
    ("rows.json", '[\n{"code": "a"},\n{"code": "b"}', "holds no JSON object, or is damaged: give"),
    ("rows.json", '[{"code": "a"},', "holds no JSON object, or is damaged: give one object a line"),
    ("rows.json", '{\n"code": "a"\n', "holds no JSON object, or is damaged: give one object"),
    ("rows.jsonl", '{"code": ""}\n{"code": 1}', "no usable program: .*: 1 empty, 1 unreadable;"),
    ("rows.jsonl", "version https://git-lfs.github.com/spec/v1\n", "only a Git LFS pointer: fetch"),
    ("a.py", "version https://git-lfs.github.com/spec/v1\n", "only a Git LFS pointer: fetch"),
    ("a.py", b"\xff", "not UTF-8 text: convert"), ("a.jsonl.gz", "x", "is damaged: copy it again"),
    ("a.parquet", "PAR1", "is not a corpus: name a folder"),
    ("folder/a.md", "", r"no .py file under .* \(found 1 files: .md; links to folders .*\): name"),
])
def test_a_bad_corpus_gets_one_sentence(tmp_path, name, content, message):
    if content is not None:
        write_files(tmp_path, {name: content})
    with pytest.raises(ValueError, match=message) as error:
        read_corpus(tmp_path / name.split("/")[0])
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_the_standard_library_is_a_corpus_without_its_tests():
    programs, report = read_corpus("stdlib")
    assert len(programs) > 300 and "in the standard library of Python 3" in report
    assert any("class JSONDecodeError(" in program for program in programs)
    assert not any("import pytest" in program for program in programs)


def test_a_split_holds_each_program_once_and_is_seeded():
    programs = [f"x = {n}\n" for n in range(50)]
    split = split_corpus(programs, 10, random.Random(0))
    assert [len(part) for part in split] == [40, 10] and sorted(sum(split, [])) == sorted(programs)
    assert split == split_corpus(programs, 10, random.Random(0))
    assert split != split_corpus(programs, 10, random.Random(1))
    with pytest.raises(ValueError, match="50 programs is too small to hold out 50: hold out fewer"):
        split_corpus(programs, 50, random.Random(0))


def line(letter):
    return 10 * letter + "\n"


def test_near_duplicates_by_hand():
    def grouped(programs):
        return near_duplicates(programs, least=1)

    a, b, c, d, e = map(line, "abcde")
    assert grouped([a + b, b + c + d, e]) == [[0, 1], [2]]
    assert grouped([a + b + c, c + d + e]) == [[0], [1]]  # a third in common
    assert grouped([a + b, b + c, c + d]) == [[0, 1, 2]]  # linked by the second
    assert grouped(["x = 1\n" + a, "x = 1\n" + b]) == [[0], [1]]  # a short line
    assert grouped([f"  {a}", a]) == [[0, 1]] and grouped(["x\n", "y\n"]) == [
        [0], [1]]
    assert near_duplicates([a + b + c + d, a + b + c + d]) == [[0, 1]]  # all lines in common
    assert near_duplicates([a + b + c, a + b + d]) == [[0], [1]]  # two of three are too few


def test_a_tiny_program_links_no_others():
    programs = ["".join(f"{k} is the number of line {i}\n" for i in range(7)) for k in range(200)]
    tiny = line("a")
    groups = near_duplicates([tiny + program for program in programs] + [tiny])
    assert groups == [[0, 200], *([k] for k in range(1, 200))]
    assert near_duplicates([tiny, tiny + "x\n", tiny + programs[0]]) == [[0, 1, 2]]


def test_variants_of_one_program_are_one_group_however_many_they_are():
    whole = "".join(f"this is line number {i}\n" for i in range(40))
    variants = [whole.replace("number 7\n", f"of {k}, another\n") for k in range(30)]
    others = ["".join(f"{k} is the number of line {i}\n" for i in range(7)) for k in range(70)]
    mixed = [text for pair in zip(others, variants) for text in pair] + others[30:]
    groups = near_duplicates(mixed)
    assert [len(group) for group in groups if len(group) > 1] == [30] and len(groups) == 71


def test_near_duplicates_are_on_one_side_of_the_split():
    programs = ["".join(line(chr(200 + k % 20) + x) for x in "abcde") + line(chr(300 + k))
                for k in range(60)]
    for seed in range(5):
        learned, held_out = split_corpus(programs, 12, random.Random(seed))
        assert len(learned) + len(held_out) == 60 and len(held_out) == 12
        assert not {text[0] for text in learned} & {text[0] for text in held_out}


def test_a_table_is_left_out(tmp_path):
    table = "DECODING = (\n" + "".join(
        f"    '\\x{k:02x}'     #  0x{k:02X} -> CONTROL\n" for k in range(120)) + ")\n"
    code = "".join(f"def f{k}(x):\n    return x + {k}\n\n" for k in range(120))
    write_files(tmp_path, {"table.py": table, "code.py": code, "both.py": table + 2 * code,
                           "short.py": "A = [\n    1,\n    2,\n]\n",
                           "hex.py": "A = {\n" + "    0x1F: 0xAB,\n" * 120 + "}\n",
                           "text.py": 'A = \'\'\'\n' + "".join(
                               f"    \'word{k}, \"{k}\" # 1\n" for k in range(120)) + "\'\'\'\n"})
    programs, report = read_corpus(tmp_path)
    assert len(programs) == 4 and report.endswith(": 2 tables")
    assert all("return" in text or "1,\n    2" in text or "word" in text for text in programs)


@pytest.mark.parametrize("name, field, n, left_out", [
    ("kattis.jsonl", "code", 1918, ": 1 table"),
    ("HumanEval.jsonl", "canonical_solution", 164, "")])
def test_real_programs_are_read(name, field, n, left_out):
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip("the file is not available")
    programs, report = read_corpus(path)
    assert report == f"{len(programs):,} programs of {n:,} in {path} (field {field}){left_out}"
    assert len(programs) == n - bool(left_out) and all(map(ast.parse, programs))


def test_near_duplicates_are_linked_through_any_chain_of_others():
    """Against a search through all pairs, on programs that share many lines."""
    rng = random.Random(0)
    for _ in range(30):
        programs = ["\n".join(f"line number {k}" for k in rng.sample(range(60), rng.randint(2, 6)))
                    for _ in range(60)]
        lines = [set(text.split("\n")) for text in programs]
        near = set()
        for i, j in itertools.product(range(60), repeat=2):
            shorter = min(len(lines[i]), len(lines[j]))
            if len(lines[i] & lines[j]) >= max(2, shorter / 2):
                near.add((i, j))
        left, groups = set(range(60)), []
        while left:
            group, new = set(), {min(left)}
            while new:
                group |= new
                new = {j for i in new for j in left - group if (i, j) in near}
            left -= group
            groups.append(sorted(group))
        assert near_duplicates(programs, least=2) == groups


@pytest.mark.parametrize("size", [1, 3, 7, 10 ** 6])
def test_the_pieces_of_a_text_are_cut_at_newlines_and_make_it_up(size):
    rng = random.Random(0)
    text = "".join(write_program(p.parts, draw_style(rng)) for p in small_contest().learn[:4])
    parts = corpus.pieces(tokenizer(), text + "x" * 99, size)
    assert sum(parts, []) == tokenizer().encode_ordinary(text + "x" * 99)
    assert all(0 < len(ids) <= size for ids in parts)
    for ids in parts[:-1]:
        newline = ["\n" in tokenizer().decode([i]) for i in ids]
        assert newline[-1] or not any(newline)
    assert corpus.pieces(tokenizer(), "", size) == []


def test_pieces_by_hand():
    encoding = data.train_tokenizer([], 257)
    assert list(map(encoding.decode, corpus.pieces(encoding, "a\nbcd", 3))) == ["a\n", "bcd"]
