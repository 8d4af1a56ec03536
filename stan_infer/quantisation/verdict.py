"""What 8 bits gain and cost in the engines of this machine, timed beside fp32, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.benchmarking.interleave import Candidate, Schedule, bench_videos
from stan_infer.engines.open import ENGINES, graph_engines, open_session
from stan_infer.engines.session import Session
from stan_infer.errors import MissingError
from stan_infer.network.eight_bits import NUMBER_FORMATS
from stan_infer.quantisation.bound import Bound, Comparison, Measured, Search

# Speed relative to the next higher precision in the same engine; at or below it nothing was gained.
# On a shared machine medians of ten interleaved runs of one graph differ by as much.
NOT_FASTER = 1.05


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
        rows = _timed(exact, candidates, clips)
    figures["ort", word] = measured
    for row in rows:
        one = figures.get((row["engine"], row["precision"]))
        if one is not None:
            row |= {**one.figures(), "is_met": one.is_met}
    ratios = _ratios(rows, word)
    is_simulated = NUMBER_FORMATS[word].is_float
    return {
        "rows": rows + absent,
        "ratios": ratios,
        "is_slower": not is_simulated and not any(r > NOT_FASTER for r in ratios.values()),
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
    exact: Artefact, candidates: _Candidates, clips: Sequence[np.ndarray]
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
        schedule=Schedule(warmup=2, repeats=10, min_seconds=1.0),
        clips=[c[None] for c in clips],
    )


def sentence(verdict: dict[str, Any], bound: Bound, measured: Measured, kept: Sequence[str]) -> str:
    """The verdict in one sentence."""
    word = verdict["precision"]
    cost = measured.loss(bound.metric) or f"keeps a cosine of {measured.cosine:.5f}"
    back = f" with {len(kept)} linear{'s' * (len(kept) > 1)} in fp32" if kept else ""
    if not verdict["is_met"]:
        return f"{word} does not reach {bound.asked}: the best found{back} {cost}"
    if verdict["is_simulated"]:
        return f"{word} {cost}{back}; it is for GPUs from sm_89 on: speed not measured here"
    ratios = verdict["ratios"]
    rows = [r for r in verdict["rows"] if r["precision"] == word]
    missed = [r["engine"] for r in rows if r.get("is_met") is False]
    back += f"; in {', '.join(missed)} it misses the bound" if missed else ""
    if not ratios:
        return f"{word} runs in no engine here: {'; '.join(r['refused'] for r in rows)}"
    best = max(ratios, key=lambda e: ratios[e])
    others = [f"{ratios[e]:.2f}x in {e}" for e in ratios if e != best]
    beside = f" ({', '.join(others)})" if others else ""
    higher = _next(verdict["rows"], best)
    if verdict["is_slower"]:
        return (
            f"{word} is no faster here: {ratios[best]:.2f}x of {higher} in {best}{beside}; it "
            f"{cost}{back}; use {higher}"
        )
    return f"{word} is {ratios[best]:.2f}x as fast as {higher} in {best}{beside} and {cost}{back}"


def _next(rows: Sequence[dict[str, Any]], engine: str) -> str:
    """The next higher precision that an engine runs here."""
    timed = [r["precision"] for r in rows if r.get("latency_ms_p50") and r["engine"] == engine]
    return "bf16" if "bf16" in timed else "fp32"


def _ratios(rows: Sequence[dict[str, Any]], word: str) -> dict[str, float]:
    """By engine: the speed of 8 bits divided by that of the next higher precision there."""
    found = {}
    timed = {(r["engine"], r["precision"]): r for r in rows if "latency_ms_p50" in r}
    for (engine, precision), row in timed.items():
        if precision == word:
            higher = timed.get((engine, "bf16")) or timed.get((engine, "fp32"))
            if higher:
                found[engine] = row["speedup"] / higher["speedup"]  # both paired with one candidate
    return found


def _video(artefact: Artefact) -> Graph:
    graph = artefact.graph("video")
    assert graph is not None  # source.check_runnable
    return graph


def _size(artefact: Artefact) -> int:
    graph, files = _video(artefact), artefact.manifest["files"]
    return sum(files[n]["bytes"] for n in (graph.file, *graph.external_data))
