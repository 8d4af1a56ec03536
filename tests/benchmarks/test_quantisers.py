"""The comparison of quantisers: its arithmetic on planted samples, and its table."""

import math

import numpy as np
import pytest

from benchmarks import quantisers
from benchmarks.tables import markdown, quality

MACHINE = {
    "machine": {"cpu": "X", "cores": 2, "system": "Linux", "python": "3.11"},
    "versions": {"torch": "2", "onnxruntime": "1"},
    "date": "today",
}


def test_figures_of_known_embeddings():
    """Four clips of two texts: one answer is lost, one gained, one cosine is that of 60 degrees."""
    labels = quantisers.Labels(np.eye(2, dtype="f4"), np.array([0, 0, 1, 1]))
    exact = np.array([[2, 1], [2, 1], [2, 1], [1, 2]], "f4")  # answers 0, 0, 0, 1
    video = np.array([[4, 2], [1, 2], [1, 2], [1, 2]], "f4")  # answers 0, 1, 1, 1
    found = quantisers.compared(exact, video, labels)
    assert found["accuracy"] == 75 and found["agreement"] == 50
    assert (found["lost"], found["gained"]) == (1, 1)
    assert found["cosine"] == pytest.approx(0.8)
    assert found["mean_cosine"] == pytest.approx((1 + 0.8 + 0.8 + 1) / 4)
    turned = np.array([[0.5, math.sqrt(0.75)]], "f4")
    alone = quantisers.compared(np.array([[3.0, 0.0]], "f4"), turned, None)
    assert alone == {"cosine": pytest.approx(0.5), "mean_cosine": pytest.approx(0.5)}


def test_speeds_are_ratios_within_a_round():
    """The machine is three times slower in the second round."""
    times = {"fp32": [2.0, 6.0, 2.0], "a": [1.0, 3.0, 1.0], "b": [2.0, 3.0, 4.0]}
    found = quantisers.speeds(times)
    assert found["fp32"]["speed"] == 1 and found["a"]["speed"] == 2
    assert found["b"] == {"speed": 1.0, "speed_low": 0.75, "speed_high": 1.5}


def test_the_table_of_a_recorded_sample(monkeypatch):
    good = {
        "accuracy": 92.35, "agreement": 99.5, "lost": 7, "gained": 3, "cosine": 0.999612,
        "mean_cosine": 0.99994, "speed": 1.5, "speed_low": 1.4, "speed_high": 1.61,
        "file_ratio": 0.28, "seconds": 9.04, "peak_mib": 700.4,
    }  # fmt: skip
    fp32 = {k: v for k, v in good.items() if k not in ("seconds", "peak_mib")}
    paths = [
        {"tool": "fp32", **fp32},
        {"tool": "ours", **good},
        {"tool": "theirs", "seconds": 30.0, "peak_mib": 800.0, "refused": "no kernel"},
        {"tool": "absent", "failed": "No module named 'nncf'"},
    ]
    rows = [{"model": "motion", **MACHINE, **row} for row in paths]
    monkeypatch.setattr(markdown, "read_rows", lambda kind: rows)
    text = quality.quantisers_table("motion").replace("\N{NO-BREAK SPACE}", " ")
    where, answers, costs, *notes = text.split("\n\n")
    assert where.startswith("X, 2 cores")
    for table, columns in ((answers, 6), (costs, 5)):
        assert all(line.count("|") == columns + 1 for line in table.splitlines())
    assert "| ours | 92.35 % | 7, 3 | 99.50 % | 0.99961 | 0.99994 |" in answers
    assert "| ours | 1.50x (1.40 to 1.61) | 0.28x | 9.0 | 700 |" in costs
    assert "| theirs | - | - | - | - | - |" in answers and "| absent | - | - | - | - |" in costs
    assert "| theirs | - | - | 30.0 | 800 |" in costs
    assert notes == [
        "theirs wrote a file that ONNX Runtime does not run: `no kernel`",
        "absent wrote no file: `No module named 'nncf'`",
    ]
    unlabelled = [{k: v for k, v in row.items() if k != "accuracy"} for row in rows]
    monkeypatch.setattr(markdown, "read_rows", lambda kind: unlabelled)
    assert quality.quantisers_table("motion").count("| INT8 by |") == 1
    assert quality.quantisers_table("stan-b32") == quality.NOT_MEASURED


def test_figures_of_two_machines_are_not_mixed(monkeypatch):
    """Each has "a" measured; the machine that was measured last has no "b"."""
    old = {**MACHINE, "date": "2026-11-27"}
    new = {**MACHINE, "machine": {"cpu": "Y"}, "date": "2026-11-27T05:10+00:00"}
    rows = [{**new, "tool": "a", "x": 1}, {**old, "tool": "a"}, {**old, "tool": "b"}]
    monkeypatch.setattr(markdown, "read_rows", lambda kind: rows)
    assert [r["x"] for r in markdown.newest("any", "tool")] == [1]
    assert [len(r) for r in markdown.by_machine("any")] == [1, 2]
