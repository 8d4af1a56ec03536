"""Tables fit the terminal: 80 columns, and any other."""

import io
import itertools
import re
import sys
import unicodedata

import pytest

from stan_infer.cli.layout import shortened, terminal_width, wrapped
from stan_infer.cli.report import print_facts, print_lines, print_table

LONG = "shards/2024/a_very_long_name_of_a_folder/red_cross_moves_left_and_right.mp4"
ROWS = [
    {"video": LONG, "text": "a shape that moves to the left and comes back", "score": 0.25, "n": 1},
    {"video": "b.mp4", "text": "one", "score": -0.5, "n": None},
]
WIDE_CHARACTERS = [
    {"video": "動画/赤い円/左に動く.mp4", "text": "猫が走る 🐈 and a dog", "score": 0.25, "n": 1},
    {"video": "cafe\u0301s/b.mp4", "text": "n\u0303" * 10, "score": -0.5, "n": None},
]
WIDE = [{f"column{i}": 10.0**i for i in range(12)} | {"why": "words " * 30}]


def columns_of(line):
    """Cells that a terminal gives a line, by the properties of its characters."""
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line]
    return sum(w for c, w in zip(line, widths, strict=True) if not unicodedata.combining(c))


def printed(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize("rows", [ROWS, WIDE, WIDE_CHARACTERS])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(columns, rows, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(rows)
    print_facts(rows[0])
    print_lines("words " * 30)
    lines = printed(capsys)
    assert max(map(columns_of, lines)) <= columns
    shown = re.sub(r"\s", "", "".join(lines))
    for name in rows[0]:
        assert name in shown
    for cell in itertools.chain(*(row.values() for row in rows)):
        pieces = re.findall(r"[^\s/_]+", cell) if isinstance(cell, str) else []
        assert all(piece in "\n".join(lines) for piece in pieces)


def test_characters_of_two_cells_and_of_none_leave_columns_aligned(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table([{"video": "動画.mp4", "n": 1}, {"video": "cafe\u0301.mp4", "n": 20}])
    print_facts({"名前": "b.mp4", "frames": 8})
    assert printed(capsys) == [
        "video      n",
        "動画.mp4   1",
        "cafe\u0301.mp4  20",
        "名前    b.mp4",
        "frames  8",
    ]


def test_escapes_of_an_output_that_knows_ascii_only_are_in_the_widths(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    print_table([{"video": "é.mp4", "n": 1}, {"video": "b.mp4", "n": 20}])
    sys.stdout.seek(0)
    assert sys.stdout.read().splitlines() == [
        "video      n",
        "\\xe9.mp4   1",
        "b.mp4     20",
    ]


def test_a_pipe_has_one_line_a_row(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_width() is None
    print_table(ROWS)
    lines = printed(capsys)
    assert len(lines) == 3 and LONG in lines[1]


def test_columns_that_do_not_fit_follow_below_with_the_first(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    print_table([{"engine": "ort", "B": 1, "first": 1.5, "second": 1234.5, "third": 2}], keys=2)
    assert printed(capsys) == [
        "engine  B  first  second",
        "ort     1    1.5    1234",
        "",
        "engine  B  third",
        "ort     1      2",
    ]


def test_a_hash_stays_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_facts({"sha256 of the annotations": "a" * 64, "videos": 10})
    assert printed(capsys) == [
        "sha256 of the annotations",
        "  " + "a" * 64,
        "videos                     10",
    ]


def test_text_is_broken_at_blanks_and_paths_behind_their_separators():
    assert wrapped("one two three", 8) == ["one two", "three"]
    assert wrapped("clips/red_cross_moves.mp4", 12) == ["clips/red_", "cross_", "moves.mp4"]
    assert wrapped("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert wrapped("46.9 (43.8 to 50.0)", 16) == ["46.9", "(43.8 to 50.0)"]
    assert wrapped("nothing (x y), and", 11) == ["nothing", "(x y), and"]
    assert wrapped("a (bb cc dd) e", 6) == ["a (bb", "cc dd)", "e"]
    assert wrapped("", 10) == [""] and wrapped("short", 10) == ["short"]
    assert wrapped("動画動画.mp4", 5) == ["動画", "動画.", "mp4"]
    assert wrapped("n\u0303" * 5, 2) == ["n\u0303" * 2, "n\u0303" * 2, "n\u0303"]
    assert wrapped("\u0303" * 9, 2) == ["\u0303" * 9]
    assert shortened("short", 5) == "short" and shortened("longer", 5) == "lo..."
    assert shortened("動画動画", 6) == "動..."
