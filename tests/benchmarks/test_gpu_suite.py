"""The GPU suite's own logic, on the CPU with tiny shapes: rows, going on, failures, tables."""

import json
import sys

import pytest
import torch

from benchmarks.gpu import kernels, suite, tune
from benchmarks.gpu.cases import Shape
from benchmarks.gpu.suite import Suite, run_suite, table
from benchmarks.gpu.timing import Device, interleave
from stan_infer.kernels import tuned
from stan_infer.kernels.tuned import Tile
from tests.conftest import ROOT


def make_suite(path, minutes=5.0):
    said: list[str] = []
    made = Suite(path / "rows.jsonl", Device("cpu"), minutes, said.append)
    return made, said


def test_a_run_and_the_next_one(tmp_path):
    first, said = make_suite(tmp_path)
    run_suite(first, ("kernels", "model"), quick=True)
    assert said[0] == "peak rates" and "model stan-tiny B=1 T=2" in said and not first.left
    assert not any("failed" in r for r in first.rows), first.rows
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == first.rows
    kernels = [r for r in first.rows if "operation" in r]
    assert {r["lane"] for r in kernels if r["operation"] == "temporal_attention"} == {
        "SDPA with its copies",
        "ours",
    }
    assert all(r["floor_ms"] > 0 and r["ratio"] > 0 for r in kernels)
    assert all(r["share_of_floor"] is None for r in kernels)  # so small that a cache holds them
    lanes = {r["lane"]: r for r in first.rows if "model" in r}
    assert lanes["eager bf16"]["ratio"] == 1.0 and lanes["eager bf16"]["max_rel_error"] < 0.1
    assert "finds no GPU" in lanes["triton"]["refused"]
    text = table(first.rows)
    assert "| stan-tiny | 1,\N{NO-BREAK SPACE}2 | eager bf16 |" in text and "finds no GPU" in text
    again, said = make_suite(tmp_path)
    run_suite(again, ("kernels", "model"), quick=True)
    assert said == [] and again.rows == first.rows


def test_what_there_is_no_time_for_is_left(tmp_path):
    made, said = make_suite(tmp_path, minutes=0)
    run_suite(made, ("kernels",), quick=True)
    assert said == [] and made.left[0] == "peak rates"
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_unit_that_was_cut_off_runs_again(tmp_path):
    made, _ = make_suite(tmp_path)
    made.unit("one", lambda: [{"a": 1}, {"a": 2}])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text(lines[0] + "\n")
    again, said = make_suite(tmp_path)
    again.unit("one", lambda: [{"a": 1}, {"a": 2}])
    assert said == ["one"]


def test_one_failure_does_not_stop_the_rest(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(kernels, "measure", broken)
    made, said = make_suite(tmp_path)
    run_suite(made, ("kernels",), quick=True)
    failed = [r for r in made.rows if "failed" in r]
    assert len(failed) == len(said) - 1 > 3
    assert failed[0]["failed"] == "RuntimeError: out of memory"
    assert "failed, RuntimeError: out of memory" in table(made.rows)


def test_what_cannot_even_be_set_up_is_a_row(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        yield kernels.Comparison("fine", {"a": lambda: 0}, (1, 1))
        raise MemoryError("none left")

    monkeypatch.setattr(kernels, "comparisons", broken)
    made, said = make_suite(tmp_path)
    run_suite(made, ("kernels",), quick=True)
    assert said[1].startswith("kernels fine") and said[2].startswith("kernels at Shape(")
    assert made.rows[-1]["failed"] == "MemoryError: none left"


def test_another_gpu_or_version_starts_anew(tmp_path):
    made, _ = make_suite(tmp_path)
    made.unit("one", lambda: [{"a": 1}])
    path = tmp_path / "rows.jsonl"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "gpu": "another"}) + "\n")
    again, said = make_suite(tmp_path)
    again.unit("one", lambda: [{"a": 1}])
    assert said == ["one"]


def test_ratios_are_of_the_same_round(monkeypatch):
    ticks = iter([1.0, 1.0, 2.0, 1.0, 4.0, 2.0, 8.0, 4.0])  # a round before, to count by
    device = Device("cpu")
    monkeypatch.setattr(device, "ms", lambda run, flush: next(ticks))
    found = interleave(device, {"a": lambda: 0, "b": lambda: 0}, rounds=3)
    assert found["a"]["ratio"] == 1.0 and found["b"]["ratio"] == 2.0
    assert found["a"]["ms_p50"] == 4.0 and found["b"]["ms_p50"] == 2.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("module", [suite, tune])
def test_without_a_gpu(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program"])
    assert module.main() == 3 and capsys.readouterr().err.startswith("error: ")


def test_tuning_writes_what_kernels_read(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    path.write_text((ROOT / "kernels" / "tuned.json").read_text())
    shape = Shape(1, 3, 4, 32, 8, 16)
    seen = {}

    def timed(device, calls, rounds):
        seen.setdefault("names", list(calls))
        ms = dict.fromkeys(calls, 2.0)
        ms["library" if "library" in calls else list(calls)[-1]] = 1.0
        return ms

    monkeypatch.setattr(tune, "best", timed)
    rows = tune.tune(Device("cpu"), "sm90", [shape], [torch.float16], 1)
    assert seen["names"][:2] == ["rule", "library"] and "[64, 64, 64, 4, 4]" in seen["names"]
    tune.write(path, "sm90", rows)
    tune.write(path, "sm80", {"linear": []})
    table = json.loads(path.read_text())
    assert table["tiles"] == tuned.table()["tiles"]
    monkeypatch.setattr(tuned, "table", lambda: table)
    assert tuned.library_is_faster("sm90", torch.float16, 15, 96, 32)
    assert isinstance(
        tuned.chosen("temporal_attention", "sm90", torch.float16, rows=8, frames=3), Tile
    )


def test_the_rule_stays_where_nothing_is_much_faster():
    assert tune.winner({"rule": 1.0, "library": 0.99}) is None
    assert tune.winner({"rule": 1.0, "library": 0.9}) == "library"


def test_tuning_runs_every_candidate():
    shape = Shape(1, 2, 4, 32, 8, 16)
    operation, _, calls = next(tune.choices(shape, "cpu", torch.float32, "cpu"))
    assert operation == "linear"
    few = {k: calls[k] for k in list(calls)[:4]}
    assert set(tune.best(Device("cpu"), few, 1)) == set(few)


def test_targets_are_held_against_rows(monkeypatch):
    from benchmarks.tables import gpu

    monkeypatch.setattr(gpu, "read_rows", lambda kind: [])
    assert gpu.targets_table().count("not measured") == len(gpu.TARGETS)
    shape = {"model": "stan-b16", "batch": 8, "frames": 12, "gpu": "NVIDIA H100", "unit": "a"}
    rows = [
        {**shape, "lane": "triton", "ms_p50": 9.0},
        {**shape, "lane": "compile max-autotune", "ms_p50": 9.9},
        {**shape, "lane": "triton", "ms_p50": 9.1, "unit": "b"},
        {**shape, "lane": "triton", "ms_p50": 1.0, "gpu": "another"},
    ]
    monkeypatch.setattr(gpu, "read_rows", lambda kind: rows)
    lines = gpu.targets_table().splitlines()
    assert lines[2].endswith("| 9.1,\N{NO-BREAK SPACE}met |")
    assert lines[3].endswith("| 1.1,\N{NO-BREAK SPACE}not\N{NO-BREAK SPACE}met |")
