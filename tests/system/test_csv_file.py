"""Tables that we write: numbers as they are, texts that run nowhere and are read back whole."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stan_infer.system.csv_file import guarded, unguarded, write_csv

RISKY = st.text(st.sampled_from("'=+-@\t\r\n\uff1d1.e ab,\""), max_size=8)


def test_a_file_is_exact_and_holds_no_formula(tmp_path):
    rows = [
        ["=cmd|' /C calc'!A0.mp4", '=1+1, "x"', 0.1 + 0.2],
        ["-x.mp4", "two\nlines", None],
        ["a/=b.mp4", "caf\u00e9", float("nan")],
        ["v.mp4", "-0.25", -0.25],
    ]
    write_csv(tmp_path / "x.csv", ["video", "text", "score"], rows)
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as f:
        back = list(csv.reader(f))
    assert back == [
        ["video", "text", "score"],
        ["'=cmd|' /C calc'!A0.mp4", '\'=1+1, "x"', "0.30000000000000004"],
        ["'-x.mp4", "two\nlines", ""],
        ["a/=b.mp4", "caf\u00e9", "nan"],
        ["v.mp4", "-0.25", "-0.25"],
    ]


@given(RISKY | st.text(max_size=8))
def test_every_text_is_read_back(text):
    cell = guarded(text)
    assert unguarded(cell) == text
    assert cell == text or cell == "'" + text


@pytest.mark.parametrize("text", ["=1", "+x", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\uff1d1", "'=1"])
def test_a_text_that_could_run_is_guarded(text):
    assert guarded(text) == "'" + text


@pytest.mark.parametrize("text", ["-1", "+1.5", "-0.1234567", "1e-07", "-1e+10", "'tis", "a=b", ""])
def test_numbers_and_other_texts_stay(text):
    assert guarded(text) == text == unguarded(text)
