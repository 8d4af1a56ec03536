"""What 8 bits gain and cost in the engines of this machine, timed beside fp32, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.benchmarking.interleave import Candidate, Schedule, bench_videos
from stan_infer.engines.open import ENGINES, graph_engines, open_session
from stan_infer.engines.session import Session
from stan_infer.errors import MissingError
from stan_infer.network.eight_bits import NUMBER_FORMATS
from stan_infer.quantisation.bound import Bound, Comparison, Measured, Search

# Speed relative to the next higher precision in the same engine; at or below it nothing was gained.
NOT_FASTER = 1.05
ROUNDS = (10, 40, 160)  # more are timed while the intervals of the ratios hold NOT_FASTER


def judge(
    exact: Artefact,
    quantised: Artefact,
    search: Search,
    comparison: Comparison,
    clips: Sequence[np.ndarray],
    threads: int,
) -> dict[str, Any]:
    """Time fp32, bf16 where there is one, and 8 bits in every engine; return the verdict's record.

    search: its best try is `quantised`, which is held to the bound as measured in ONNX Runtime.
    clips: real ones to time with, uint8 [T, S, S, 3].
    """
    measured, word = search.best, _video(quantised).precision
    with ExitStack() as stack:
        candidates, absent = _candidates(exact, quantised, threads, stack)
        figures = {
            key: comparison.session(session)
            for key, (_, session) in candidates.items()
            if key not in (("ort", "fp32"), ("ort", word))
        }
        for rounds in ROUNDS:
            rows = _timed(exact, candidates, clips, rounds)
            ratios = _ratios(rows, word)
            if _is_faster(ratios) is not None:
                break
    figures["ort", word] = measured
    for row in rows:
        one = figures.get((row["engine"], row["precision"]))
        if one is not None:
            row |= {**one.figures(), "is_met": one.is_met}
    is_simulated = NUMBER_FORMATS[word].is_float
    return {
        "rows": rows + absent,
        "ratios": {engine: ratio.middle for engine, ratio in ratios.items()},
        "ratio_intervals": {engine: [r.low, r.high] for engine, r in ratios.items()},
        "is_faster": True if is_simulated else _is_faster(ratios),
        "is_simulated": is_simulated,
        "is_met": measured.is_met,
        "precision": word,
        **measured.figures(),
        "file_ratio": _size(quantised) / _size(exact),
    }


_Candidates = dict[tuple[str, str], tuple[Artefact, Session]]  # by engine and precision


def _candidates(
    exact: Artefact, quantised: Artefact, threads: int, stack: ExitStack
) -> tuple[_Candidates, list[dict[str, Any]]]:
    """Open what is timed; `stack` closes it. Also return rows for what cannot be opened here."""
    candidates: _Candidates = {}
    absent: list[dict[str, Any]] = []
    wanted: list[tuple[str, Artefact, str | None]] = []
    for engine in graph_engines():
        wanted.append((engine, exact, None))
        if ENGINES[engine].has("bf16", "cpu"):
            wanted.append((engine, exact, "bf16"))
        wanted.append((engine, quantised, None))
    for engine, folder, precision in wanted:
        word = precision or _video(folder).precision
        try:
            session = open_session(folder.path, engine, precision=precision, threads=threads)
        except MissingError as e:
            absent.append({"engine": engine, "precision": word, "refused": str(e)})
        else:
            stack.callback(session.close)
            candidates[engine, word] = folder, session
    return candidates, absent


def _timed(
    exact: Artefact, candidates: _Candidates, clips: Sequence[np.ndarray], rounds: int
) -> list[dict[str, Any]]:
    return bench_videos(
        [
            Candidate(
                f"{engine} {word}",
                session.embed_video,
                {**session.describe(), "file_mib": _size(folder) / 2**20},
            )
            for (engine, word), (folder, session) in candidates.items()
        ],
        side=exact.config.image_size,
        flops=None,
        batches=[1],
        frames=[exact.config.frames],
        schedule=Schedule(warmup=2, repeats=rounds, min_seconds=1.0),
        clips=[c[None] for c in clips],
    )


def sentence(
    verdict: dict[str, Any], bound: Bound, measured: Measured, kept: Sequence[str], rests_on: str
) -> str:
    """The verdict in one sentence. rests_on: which clips the accuracy was measured on."""
    word, cost = verdict["precision"], measured.in_words(bound)
    back = f" with {len(kept)} linear{'s' * (len(kept) > 1)} in fp32" if kept else ""
    if not verdict["is_met"]:
        return f"{word} does not reach {bound.asked}: the best found{back} is {cost}; {rests_on}"
    rows = [r for r in verdict["rows"] if r["precision"] == word]
    missed = [r["engine"] for r in rows if r.get("is_met") is False]
    back += f", {rests_on}"
    back += f"; in {', '.join(missed)} it misses the bound" if missed else ""
    if measured.interval is not None and measured.interval[1] > bound.max_drop:
        back += f"; only the estimate keeps {bound.asked}, the interval does not"
    if verdict["is_simulated"]:
        return f"{word} has {cost}{back}; it is for GPUs from sm_89 on: speed not measured here"
    ratios, spread = verdict["ratios"], verdict["ratio_intervals"]
    if not ratios:
        return f"{word} runs in no engine here: {'; '.join(r['refused'] for r in rows)}"
    best = max(ratios, key=lambda e: ratios[e])
    others = [f"{ratios[e]:.2f}x in {e}" for e in ratios if e != best]
    beside = f" ({', '.join(others)})" if others else ""
    higher = _next(verdict["rows"], best)
    if verdict["is_faster"] is None:
        low, high = spread[best]
        return (
            f"whether {word} is faster cannot be told on this machine now: {low:.2f}x to "
            f"{high:.2f}x of {higher} in {best}{beside}; it has {cost}{back}; run it again when "
            "nothing else runs"
        )
    if not verdict["is_faster"]:
        return (
            f"{word} is no faster here: {ratios[best]:.2f}x of {higher} in {best}{beside}; it "
            f"has {cost}{back}; use {higher}"
        )
    return (
        f"{word} is {ratios[best]:.2f}x as fast as {higher} in {best}{beside} and has {cost}{back}"
    )


def _next(rows: Sequence[dict[str, Any]], engine: str) -> str:
    """The next higher precision that an engine runs here."""
    timed = [r["precision"] for r in rows if r.get("latency_ms_p50") and r["engine"] == engine]
    return "bf16" if "bf16" in timed else "fp32"


class _Ratio(NamedTuple):
    low: float
    middle: float
    high: float


def _ratios(rows: Sequence[dict[str, Any]], word: str) -> dict[str, _Ratio]:
    """By engine: the speed of 8 bits divided by that of the next higher precision there."""
    found = {}
    timed = {(r["engine"], r["precision"]): r for r in rows if "samples_ms" in r}
    for (engine, precision), row in timed.items():
        higher = timed.get((engine, _next(rows, engine)))
        if precision == word and higher:
            found[engine] = paired_ratio(higher["samples_ms"], row["samples_ms"])
    return found


def paired_ratio(slow_ms: Sequence[float], fast_ms: Sequence[float]) -> _Ratio:
    """Median of the ratios of rounds that ran both, and what it may be: at least 95 %.

    The interval is that of order statistics, which takes rounds for independent; work beside it
    comes and goes, so the interval also spans the medians of both halves of the run.
    """
    ratios = np.asarray(slow_ms) / np.asarray(fast_ms)
    ordered, n = np.sort(ratios), len(ratios)
    rank = max(int(n / 2 - 0.98 * math.sqrt(n)) - 1, 0)
    halves = [float(np.median(half)) for half in np.array_split(ratios, 2) if len(half)]
    low, high = min(float(ordered[rank]), *halves), max(float(ordered[n - 1 - rank]), *halves)
    return _Ratio(low, float(np.median(ratios)), high)


def _is_faster(ratios: Mapping[str, _Ratio]) -> bool | None:
    """Whether 8 bits are faster in some engine; None where that cannot be told."""
    if any(r.low > NOT_FASTER for r in ratios.values()):
        return True
    return None if any(r.high > NOT_FASTER for r in ratios.values()) else False


def _video(artefact: Artefact) -> Graph:
    graph = artefact.graph("video")
    assert graph is not None  # source.check_runnable
    return graph


def _size(artefact: Artefact) -> int:
    graph, files = _video(artefact), artefact.manifest["files"]
    return sum(files[n]["bytes"] for n in (graph.file, *graph.external_data))
