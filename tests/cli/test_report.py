"""Output: one JSON object per line without NaN, and no control character on a terminal."""

from __future__ import annotations

import json

import numpy as np

from stan_infer.cli.report import print_json, print_table, say

HOSTILE = "a\x1b[31m\nb"


def test_json_is_one_line_and_knows_no_nan(capsys):
    values = {"a": float("nan"), "b": np.float32("inf"), "c": np.arange(2), "d": HOSTILE}
    print_json("x", values)
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record == {"schema": "stan-infer/x/1", "a": None, "b": None, "c": [0, 1], "d": HOSTILE}


def test_control_characters_do_not_reach_the_terminal(capsys):
    say(HOSTILE)
    print_table([{"name": HOSTILE, "n": 1.5}, {"name": "b", "n": None}])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and len(out.splitlines()) == 3 and len(err.splitlines()) == 1
