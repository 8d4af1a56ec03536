"""Tables fit the terminal: 80 columns, and any other."""

import itertools
import re

import pytest

from stan_infer.cli.layout import terminal_width, wrapped
from stan_infer.cli.report import print_facts, print_lines, print_table

LONG = "shards/2024/a_very_long_name_of_a_folder/red_cross_moves_left_and_right.mp4"
ROWS = [
    {"video": LONG, "text": "a shape that moves to the left and comes back", "score": 0.25, "n": 1},
    {"video": "b.mp4", "text": "one", "score": -0.5, "n": None},
]
WIDE = [{f"column{i}": 10.0**i for i in range(12)} | {"why": "words " * 30}]


def printed(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize("rows", [ROWS, WIDE])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(columns, rows, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(rows)
    print_facts(rows[0])
    print_lines("words " * 30)
    lines = printed(capsys)
    assert max(map(len, lines)) <= columns
    shown = re.sub(r"\s", "", "".join(lines))
    for name in rows[0]:
        assert name in shown
    for cell in itertools.chain(*(row.values() for row in rows)):
        pieces = re.findall(r"[^\s/_]+", cell) if isinstance(cell, str) else []
        assert all(piece in "\n".join(lines) for piece in pieces)


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
