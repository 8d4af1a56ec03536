"""Figures from raw samples against Python's own statistics module, and the diagnoses."""

import math
import statistics
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.benchmarking.timing import (
    CudaClock,
    WallClock,
    diagnose,
    paired_ratio,
    summarise,
)

SAME = 1e-9  # two ways to interpolate in double
MS = st.floats(0.01, 1e5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(MS, MS), min_size=2, max_size=60), st.integers(1, 64))
def test_percentiles_and_ratios_are_those_of_another_computation(pairs, clips):
    mine, base = ([p[i] for p in pairs] for i in (0, 1))
    row = summarise(mine, base, clips=clips, flops=2_000_000)
    cuts = statistics.quantiles(mine, n=100, method="inclusive")
    for p in (20, 50, 95, 99):
        assert row[f"latency_ms_p{p}"] == pytest.approx(cuts[p - 1], rel=SAME)
    ratios = [b / m for m, b in pairs]
    cuts = statistics.quantiles(ratios, n=10, method="inclusive")
    assert row["speedup"] == pytest.approx(statistics.median(ratios), rel=SAME)
    assert row["speedup_p20"] == pytest.approx(cuts[1], rel=SAME)
    assert row["speedup_p80"] == pytest.approx(cuts[7], rel=SAME)
    median_s = statistics.median(mine) / 1e3
    assert row["clips_per_s"] == pytest.approx(clips / median_s, rel=SAME)
    assert row["gflop_per_s"] == pytest.approx(clips * 2e6 / median_s / 1e9, rel=SAME)
    assert row["samples_ms"] == mine and row["rounds"] == len(mine)  # nothing is left out


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(MS, MS), min_size=1, max_size=60))
def test_the_interval_of_a_ratio_leaves_out_as_many_rounds_as_coins_allow(pairs):
    """The ranks from exact integers: at most 5 % of the 2 ** n outcomes of n coins may miss."""
    n = len(pairs)
    low, middle, high = paired_ratio([p[1] for p in pairs], [p[0] for p in pairs])
    ratios = sorted(b / m for m, b in pairs)
    assert middle == pytest.approx(statistics.median(ratios), rel=SAME)
    fits = [k for k in range(n) if 40 * sum(math.comb(n, heads) for heads in range(k + 1)) <= 2**n]
    if not fits:
        assert n < 6 and (low, high) == (0, math.inf)
        return
    halves = [pairs[: -(n // 2)], pairs[-(n // 2) :]]
    medians = [statistics.median(b / m for m, b in half) for half in halves]
    k = fits[-1]
    assert low == pytest.approx(min(ratios[k], *medians), rel=SAME)
    assert high == pytest.approx(max(ratios[n - 1 - k], *medians), rel=SAME)


def test_work_that_came_halfway_is_in_the_interval():
    """Each half alone is certain of another ratio; neither may be called the ratio."""
    base = [10.0] * 40
    low, _, high = paired_ratio(base, [5.0] * 20 + [10.0] * 20)
    assert (low, high) == (1.0, 2.0)


def test_a_steady_run_needs_no_diagnosis():
    assert diagnose([10, 10.1, 9.9, 10, 10.2, 10, 9.8, 10, 10.1]) == []


@pytest.mark.parametrize(
    ("samples", "host", "word"),
    [
        ([10, 10, 10, 10, 30, 30], None, "unstable"),
        ([10, 10, 10, 10.5, 11, 11, 12, 12, 12], None, "throttled"),
        ([10, 10, 10], [9.9, 9.8, 9.7], "launch-bound"),
    ],
)
def test_what_should_not_be_believed_is_said(samples, host, word):
    (told,) = diagnose(samples, host)
    assert told.startswith(word)


def test_a_gpu_that_is_busy_is_not_launch_bound():
    assert diagnose([10, 10, 10], [1, 1, 1]) == []


class FakeCuda:
    """torch.cuda as far as the clock needs it: a stream whose work takes 5 ms."""

    def __init__(self):
        self.log = []

    def synchronize(self):
        self.log.append("synchronize")

    @contextmanager
    def device(self, name):
        self.log.append(name)
        yield

    def Event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self.log)


class FakeEvent:
    def __init__(self, log):
        self.log = log

    def record(self):
        self.log.append("record")

    def synchronize(self):
        self.log.append("wait")

    def elapsed_time(self, last):
        return 5.0


def test_a_gpu_is_timed_by_events_around_the_call():
    cuda = FakeCuda()
    out, ms, host = CudaClock(cuda, "cuda:1").time(lambda: cuda.log.append("run") or "out")
    assert (out, ms) == ("out", 5.0) and host < 5
    assert cuda.log == ["cuda:1", "synchronize", "record", "run", "record", "wait"]


def test_a_cpu_is_timed_on_the_wall():
    out, ms, host = WallClock().time(lambda: 7)
    assert out == 7 and ms > 0 and host is None
