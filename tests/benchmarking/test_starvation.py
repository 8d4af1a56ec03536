"""Starvation from CPU time: rules on made-up figures, and the verdicts on recorded runs."""

import itertools
import json
from pathlib import Path

import pytest

from stan_infer.benchmarking.rows import machine_remarks, ratio_in_words, remarks
from stan_infer.benchmarking.run import BenchResult
from stan_infer.benchmarking.starvation import (
    WIDE,
    add_doubts,
    add_far_below,
    cpu_figures,
)
from stan_infer.benchmarking.timing import diagnose, summarise
from stan_infer.system.cpu_use import CpuUse, MachineUse

# Runs of `bench --preset stan-tiny` (one of the demo) on two cores, with what ran beside them: the
# samples of the rows that --out wrote, in milliseconds, and their others_share and stolen_share.
RUNS = json.loads((Path(__file__).parent / "cpu_samples.json").read_text())
QUIET = MachineUse(0.01, 0.0)
BUSY = MachineUse(0.5, 0.0)


def figures(use, machine=QUIET, *, calls=10, ms=100.0, **more):
    return cpu_figures([ms] * calls, [use] * calls, machine, **more)


@pytest.mark.parametrize(
    ("use", "machine", "more", "starved"),
    [
        (CpuUse(0.2, 0.0), QUIET, {}, []),
        (CpuUse(0.1, 0.1), BUSY, {}, ["no CPU for 50 % of the time that they wanted one: other"]),
        # threads that sleep and wake often wait for each other on a quiet machine, too
        (CpuUse(0.1, 0.1), QUIET, {}, []),
        # other work that takes nothing from the engine, as on cores that it leaves idle
        (CpuUse(0.1, 0.001), BUSY, {}, []),
        (CpuUse(0.1, 0.1), MachineUse(), {}, ["no CPU for 50 %"]),
        (CpuUse(0.1, 0.1, 0.05), QUIET, {}, ["CPU quota held it back for 0.50 s of each second"]),
        (CpuUse(0.1, None, 0.05), QUIET, {}, ["CPU quota held it back"]),
        (CpuUse(0.2, 0.0, 0.001), QUIET, {}, []),
        (CpuUse(0.2, 0.0), MachineUse(0.0, 0.2), {}, ["gave 20 % of its CPUs away"]),
        (CpuUse(0.2, 0.0), QUIET, {"restless": 9}, ["did not sleep"]),
        (CpuUse(0.2, 0.0), QUIET, {"restless": 1}, []),
        # where the system does not tell how long threads waited
        (CpuUse(0.05), BUSY, {"threads": 1}, ["its one thread had a CPU for 50 % of the time"]),
        (CpuUse(0.099), BUSY, {"threads": 1}, []),
        (CpuUse(0.05), BUSY, {"threads": 2}, None),
        (CpuUse(0.05), BUSY, {}, None),
    ],
)
def test_rules(use, machine, more, starved):
    found = figures(use, machine, **more)["starved"]
    if not starved:
        assert found == starved
        return
    assert len(found) == len(starved)
    for text, part in zip(found, starved, strict=True):
        assert text.startswith("starved: ") and part in text


def test_a_hiccup_is_no_starvation_and_a_fifth_of_the_calls_is():
    for starved in (1, 4, 5, 10):
        uses = [CpuUse(0.01, 0.2)] * starved + [CpuUse(0.2, 0.0)] * (20 - starved)
        assert bool(cpu_figures([100.0] * 20, uses, BUSY)["starved"]) == (starved > 4)


def test_what_one_thread_reaches():
    row = {"device": "cpu", "precision": "fp32", "latency_ms_p50": 919.0, "starved": []}
    for share, more, is_starved in (
        (0.01, {}, True),
        (0.4, {}, False),
        (0.01, {"latency_ms_p50": 5.0}, False),  # small operations: their launch takes the time
        (0.01, {"precision": "bf16"}, False),
        (0.01, {"device": "cuda"}, False),
    ):
        found = row | {"share_of_ceiling": share} | more
        add_far_below(found, threads=2)
        assert bool(found["starved"]) == is_starved
    assert figures(CpuUse(0.2, 0.0), ms=919.0)["starved"] == []


def row(mine, base, engine="ort", starved=()):
    found = {"engine": engine, "precision": "fp32", "batch": 1, "frames": 8, "starved": starved}
    return found | summarise(mine, base, clips=1, flops=None)


STEADY = [10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 10.0, 10.0]
WOBBLY = [5.0, 6.0, 5.0, 7.0, 5.0, 8.0, 5.5, 6.5]


@pytest.mark.parametrize(
    ("base", "mine", "words", "doubt"),
    [
        ({}, {}, "2.00x (1.98 to 2.02)", None),
        ({}, {"starved": ["starved: x"]}, "starved", "starved: x; neither"),
        ({"starved": ["starved: x"]}, {}, "unknown", "baseline: eager is starved"),
        ({"starved": None}, {"starved": None}, "2.00x (1.98 to 2.02)", None),
        ({}, {"mine": WOBBLY}, "1.24x to 2.02x", "wide: "),
        ({}, {"mine": [5.0] * 5, "base": STEADY[:5]}, "unknown", "rounds: 5"),
        ({"starved": ["starved: x"]}, {"mine": WOBBLY}, "unknown", "baseline: "),
    ],
)
def test_what_the_table_says_of_a_ratio(base, mine, words, doubt):
    usual = {"base": STEADY, "mine": [5.0, 5.0, 5.0, 4.95, 5.05, 5.0, 5.0, 5.05], "starved": []}
    given = usual | mine
    samples, first = given["mine"], given["base"]
    rows = [row(first, first, "eager", **base), row(samples, first, starved=given["starved"])]
    for _ in range(2):  # again after the share of peak is known
        add_doubts(rows)
        assert ratio_in_words(rows[1]) == words
        assert [why[: len(doubt or "")] for why in rows[1]["doubts"]] == [doubt] * bool(doubt)
    assert rows[0]["doubts"] == [] or base.get("starved")
    told = " ".join(remarks(rows[1]))
    assert (doubt or "") in told


def test_rows_of_earlier_versions_are_read():
    old = {"engine": "ort", "precision": "fp32", "speedup": 1.25, "diagnosis": []}
    assert ratio_in_words(old) == "1.25x" and remarks(old) == [] and machine_remarks([old]) == []


def test_what_is_not_known_is_said():
    use = figures(CpuUse(0.1), MachineUse())
    told = machine_remarks([{"engine": "ort", **use, "load_before": None, "load_after": None}])
    assert told[0].endswith("not known on this system")
    assert "with --threads 1 it is" in told[1]


def judged(run):
    """The rows of a recorded run, from its samples alone."""
    rows, base = [], None
    for r in run["rows"]:
        base = base or r["samples_ms"]
        uses = [
            CpuUse(used / 1e3, waiting / 1e3)
            for used, waiting in zip(r["samples_cpu_ms"], r["samples_waiting_ms"], strict=True)
        ]
        machine = MachineUse(run["others_share"], run["stolen_share"])
        found = row(r["samples_ms"], base, r["engine"])
        found |= cpu_figures(r["samples_ms"], uses, machine, threads=run["threads"])
        rows.append(found)
    return add_doubts(rows)


@pytest.mark.parametrize("run", RUNS, ids=[r["name"] for r in RUNS])
def test_recorded_runs_are_starved_exactly_if_others_took_their_cpus(run):
    rows = judged(run)
    assert [bool(r["starved"]) for r in rows] == [run["is_starved"]] * len(rows)
    assert BenchResult("recorded", rows, [], []).is_starved == run["is_starved"]

    words = [ratio_in_words(r) for r in rows]
    assert all((w == "starved") == run["is_starved"] for w in words), words


def test_a_benchmark_is_starved_where_no_row_has_a_time_of_its_own():
    starved, timed, absent = {"starved": ["starved: x"]}, {"starved": []}, {"refused": "no GPU"}
    for rows, wanted in (
        ([starved, starved], True),
        ([starved, absent], True),
        ([starved, timed], False),
        ([{"starved": None}], False),
        ([{}], False),  # of a GPU
        ([absent], False),
    ):
        assert BenchResult("some", rows, [], []).is_starved == wanted


PAIRS = [
    (a, b)
    for a, b in itertools.combinations(RUNS, 2)
    if (a["model"], a["threads"]) == (b["model"], b["threads"])
]


@pytest.mark.parametrize("pair", PAIRS, ids=[f"{a['name']}-{b['name']}" for a, b in PAIRS])
def test_two_runs_agree_within_a_tenth_or_cannot_be_believed(pair):
    first, second = ({r["engine"]: r for r in judged(run)} for run in pair)
    for engine in first.keys() & second.keys():
        one, two = first[engine], second[engine]
        agree = abs(one["speedup"] / two["speedup"] - 1) <= WIDE
        assert agree or one["doubts"] or two["doubts"], (one["engine"], one["speedup"])


def test_the_case_that_looked_steady_is_seen():
    """Eager beside other work, p95 near p50 and many times slower: no other diagnosis tells it."""
    found = {r["name"]: judged(r) for r in RUNS}
    (eager, ort), (quiet, *_) = found["steady beside two"], found["quiet"]
    assert eager["latency_ms_p50"] > 100 * quiet["latency_ms_p50"] and ort["speedup"] > 35
    assert not [d for d in diagnose(eager["samples_ms"]) if d.startswith("unstable")]
    assert eager["starved"] and ort["starved"]
