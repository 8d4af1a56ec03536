"""Progress without a terminal: a line every so often, none for short work."""

import re
import time

from stan_infer.cli import progress
from stan_infer.cli.progress import progress_bar, progress_bars, progress_line


def test_lines_say_how_far_how_fast_and_how_long(monkeypatch, capsys):
    """Whenever the lines come: they are waited for."""
    monkeypatch.setattr(progress, "LINE_S", 0.05)
    lines = []

    def wait_for(pattern):
        while not any(re.fullmatch(pattern, line) for line in lines):
            time.sleep(0.01)
            out, err = capsys.readouterr()
            assert not out
            lines.extend(err.splitlines())

    with progress_bars() as start:
        step = start("embedding", 8)
        wait_for(r"embedding: 0 of 8 after \d+ s")  # within the first step
        for _ in range(4):
            step()
        wait_for(r"embedding: 4 of 8, [\d.]+ (per second|s each), \d+ s left")
    assert lines[0] == "embedding"


def test_work_that_is_short_or_fails_leaves_no_thread_and_no_line(capsys):
    try:
        with progress_bar("embedding", 8) as step:
            step()
            raise ValueError
    except ValueError:
        pass
    assert capsys.readouterr().err == ""


def test_durations_and_rates():
    assert progress_line("x", 30, 120, 60) == "x: 30 of 120, 2 s each, 3 min 0 s left"
    assert progress_line("x", 120, 120, 60) == "x: 120 of 120 in 1 min 0 s, 2 per second"
    assert progress_line("x", 1, 9000, 2) == "x: 1 of 9000, 2 s each, 4 h 59 min left"
