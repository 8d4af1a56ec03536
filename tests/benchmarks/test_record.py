"""The benchmark programs run, on a tiny model and without recording."""

import sys

import pytest

from benchmarks import engines, graphs


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """What the benchmark would have appended to benchmarks/results/."""
    found: list[dict] = []

    def append_rows(kind, new):
        found.extend(new)
        return tmp_path / f"{kind}.jsonl"

    for module in (engines, graphs):
        monkeypatch.setattr(module, "append_rows", append_rows)
    return found


def test_engines(rows, monkeypatch):
    args = ["--presets", "stan-tiny", "--threads", "1", "--frames", "8", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["engines", *args])
    engines.main()
    lanes = {(r["engine"], r["graph"]) for r in rows}
    assert len(rows) == len(lanes) == 7
    for row in rows:
        assert row["share_of_ceiling"] > 0 and row["max_rel_error"] < 1e-4
        assert row["model"] == "stan-tiny" and row["threads"] == 1


def test_graphs(rows, monkeypatch):
    args = ["--presets", "stan-tiny:1", "--threads", "1", "--frames", "8"]
    monkeypatch.setattr(sys, "argv", ["graphs", *args])
    graphs.main()
    reference, fused = rows
    assert (reference["graph"], fused["graph"]) == ("reference", "fused")
    assert reference["graph_gflop"] > fused["graph_gflop"] > 0
