"""The protocol of a measurement: outputs compared first, candidates in turn, inputs rotated."""

import numpy as np
import pytest

from stan_infer.benchmarking import interleave
from stan_infer.benchmarking.interleave import (
    CACHE_BYTES,
    Candidate,
    Schedule,
    bench_videos,
    clip_pool,
)
from stan_infer.benchmarking.rows import compare_rows, read_json_lines, write_json_lines
from stan_infer.benchmarking.run import BenchResult
from stan_infer.errors import CheckError, InputError


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    """No uncounted calls before timed ones: logs of calls are those of the rounds."""
    monkeypatch.setattr(interleave, "WARM_MS", 0.0)


class FakeEngine:
    """Says how long it took, so that no test depends on the machine."""

    def __init__(self, log, name, ms=1.0, change=lambda out: out):
        self.log, self.name, self.ms, self.change = log, name, ms, change
        self.seen = []

    def embed(self, clips):
        self.log.append(self.name)
        self.seen.append(clips)
        return self.change(clips.reshape(len(clips), -1)[:, :8].astype(np.float32) + 1)

    def time(self, run):
        return run(), self.ms, None


def candidates(*engines):
    return [Candidate(e.name, e.embed, {"precision": "fp32"}, e) for e in engines]


THREE = Schedule(1, 3)


def measure(engines, schedule=THREE, **more):
    return measure_candidates(candidates(*engines), schedule, **more)


def measure_candidates(found, schedule, **more):
    given = {"batches": [1], "frames": [2], "flops": lambda t: t * 10**6, **more}
    return bench_videos(found, side=8, schedule=schedule, **given)


def test_all_run_once_before_any_runs_again_and_each_is_first_in_turn():
    log = []
    rows = measure([FakeEngine(log, "a", 4.0), FakeEngine(log, "b", 2.0)])
    # compare, one warm-up round, three counted ones, compare again
    assert log == list("ababbaabbaab")
    log.clear()
    measure([FakeEngine(log, name) for name in "abc"], Schedule(1, 6))
    first = log[3:-3][::3]
    assert [first.count(name) for name in "abc"] == [3, 2, 2]  # of 7 rounds
    assert [(r["engine"], r["speedup"], r["rounds"]) for r in rows] == [("a", 1, 3), ("b", 2, 3)]
    assert rows[1]["gflop_per_s"] == pytest.approx(2e6 / 2e-3 / 1e9)


def test_a_timed_call_follows_others_of_its_own_unless_it_is_long(monkeypatch):
    monkeypatch.setattr(interleave, "WARM_MS", 30.0)
    for ms, before in ((12.0, 3), (0.1, interleave.MAX_WARM), (40.0, 1), (150.0, 1), (151.0, 0)):
        log = []
        measure([FakeEngine(log, "a", ms), FakeEngine(log, "b", 12.0)], Schedule(0, 2))
        # compare; two rounds, of which the first knows no call before it; compare
        first = before or 1
        a, b = "a" * (before + 1), "b" * 4
        assert "".join(log) == "ab" + "a" * (first + 1) + b + b + a + "ab", ms


def test_a_gpu_is_not_judged_by_cpu_time():
    engine = FakeEngine([], "a")
    facts = {"precision": "fp32", "device": "cuda:0"}
    (row,) = measure_candidates([Candidate("a", engine.embed, facts, engine)], Schedule(1, 6))
    assert row["doubts"] == [] and not {"starved", "cpus_used", "others_share"} & set(row)


def test_minimum_duration_and_minimum_repeats_both_hold():
    (row,) = measure([FakeEngine([], "a", 10.0)], Schedule(0, 3, min_seconds=0.2))
    assert row["rounds"] == 20
    (row,) = measure([FakeEngine([], "a", 10.0)], Schedule(0, 30, min_seconds=0.2))
    assert row["rounds"] == 30
    fast, slow = measure(
        [FakeEngine([], "a", 100.0), FakeEngine([], "b", 10.0)], Schedule(0, 3, min_seconds=0.2)
    )
    assert fast["rounds"] == slow["rounds"] == 20  # the faster one needs its time, too


def test_progress_comes_to_one_per_shape():
    parts = []
    schedule = Schedule(2, 7, min_seconds=0.05)
    measure([FakeEngine([], "a", 3.0)], schedule, batches=[1, 2], on_round=parts.append)
    assert sum(parts) == pytest.approx(2)


def test_inputs_are_rotated_beyond_the_cache_and_the_same_for_all():
    a, b = FakeEngine([], "a"), FakeEngine([], "b")
    measure([a, b], Schedule(0, 5))
    assert len({id(clips) for clips in a.seen[1:-1]}) == 5
    assert [id(c) for c in a.seen] == [id(c) for c in b.seen]
    pool = clip_pool(1, 8, 64)
    assert len({c.tobytes() for c in pool}) == len(pool)
    assert sum(c.nbytes for c in clip_pool(1, 8, 224)) >= CACHE_BYTES
    assert len(clip_pool(64, 64, 64)) == 2


@pytest.mark.parametrize("change", [lambda out: out * 1.01, lambda out: out[:, :3]])
def test_wrong_outputs_are_refused_and_the_others_still_run(change):
    engines = [FakeEngine([], "a"), FakeEngine([], "b", change=change), FakeEngine([], "c")]
    a, b, c = measure(engines)
    assert "latency_ms_p50" in a and "latency_ms_p50" in c
    assert "latency_ms_p50" not in b and b["refused"]


def test_one_that_turns_wrong_while_it_runs_is_found():
    """As a runtime once did that reused the plan of another shape."""
    wrong = FakeEngine([], "b")
    wrong.change = lambda out: out if len(wrong.seen) < 3 else out + 1e9
    _, row = measure([FakeEngine([], "a"), wrong])
    assert "differs from a" in row["refused"]


def test_a_baseline_that_is_not_finite_is_an_error():
    with pytest.raises(CheckError, match="not finite"):
        measure([FakeEngine([], "a", change=lambda out: out * np.nan)])


def row(engine="ort", speedup=2.0, ms=10.0, **more):
    return {
        "schema": "stan-infer/bench/1",
        **{"model": "m", "engine": engine, "precision": "fp32", "device": "cpu"},
        **{"batch": 1, "frames": 8, "threads": 1, "speedup": speedup, "latency_ms_p50": ms},
        **more,
    }


@pytest.mark.parametrize(
    ("old", "new", "change", "regression"),
    [
        (row(), row(speedup=1.85, ms=20.0), 0.925, False),  # a slower machine, the same ratio
        (row(), row(speedup=1.7, ms=5.0), 0.85, True),
        (row(), row(speedup=3.0), 1.5, False),
        (row(speedup=1.0), row(speedup=1.0, ms=12.0), 10 / 12, True),  # the baseline: by latency
    ],
)
def test_a_regression_is_told_by_the_ratio_to_the_baseline(old, new, change, regression):
    (record,) = compare_rows([old], [new], 0.1)
    assert record["change"] == pytest.approx(change)
    assert record["regression"] is regression


@pytest.mark.parametrize("which", ["old", "new"])
def test_what_is_in_doubt_is_no_regression_and_no_success(which):
    rows = {"old": row(), "new": row(speedup=0.1), which: row(speedup=0.1, doubts=["starved: x"])}
    (record,) = compare_rows([rows["old"]], [rows["new"]], 0.1)
    assert record["change"] is None and record["regression"] is None
    run = "this run" if which == "new" else "the old run"
    assert record["by"] == f"not known: other work had the CPUs in {run}"
    result = BenchResult("t", [rows["new"]], [], [record])
    assert result.is_wrong


def test_an_engine_that_no_longer_runs_is_a_regression():
    gone = row(refused="differs")
    del gone["latency_ms_p50"], gone["speedup"]
    (record,) = compare_rows([row()], [gone], 0.1)
    assert record["regression"]


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        ({"cpu": "EPYC (family 26, model 2)", "instruction_sets": ["avx2"]}, "is EPYC (family 26"),
        ({"cpu": "EPYC (family 25, model 1)", "instruction_sets": []}, "other instruction sets"),
        ("from a stranger", "is None"),
    ],
)
def test_another_processor_tells_nothing_of_an_engine(machine, why):
    old = row(machine={"cpu": "EPYC (family 25, model 1)", "instruction_sets": ["avx2"]})
    (record,) = compare_rows([old], [row(speedup=0.1, machine=machine)], 0.1)
    assert record["change"] is record["regression"] is None and why in record["by"]
    (record,) = compare_rows([old], [{**old, "speedup": 0.1}], 0.1)
    assert record["regression"], "the same processor tells"


def test_rows_of_other_shapes_are_not_compared():
    with pytest.raises(InputError, match="nothing to compare"):
        compare_rows([row()], [row(batch=2)], 0.1)
    with pytest.raises(InputError, match="no usable speedup"):
        compare_rows([row(speedup=None)], [row()], 0.1)


@pytest.mark.parametrize("text", ["", "no json", '{"schema": "other/1"}', "[" * 200_000])
def test_a_file_that_is_no_bench_is_told(tmp_path, text):
    path = tmp_path / "old.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="stan-infer bench"):
        read_json_lines(path, "bench", "bench --out FILE")


def test_rows_come_back_and_other_schemas_are_passed_over(tmp_path):
    write_json_lines(tmp_path / "r.jsonl", [row(), {"schema": "stan-infer/bench-stages/1"}])
    assert read_json_lines(tmp_path / "r.jsonl", "bench", "bench --out FILE") == [row()]
