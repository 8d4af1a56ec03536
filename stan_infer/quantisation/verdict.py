"""What 8 bits gain and cost in the engines of this machine, timed beside fp32."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.benchmarking.interleave import Candidate, Schedule, bench_videos
from stan_infer.benchmarking.timing import paired_ratio
from stan_infer.engines.open import ENGINES, graph_engines, open_session
from stan_infer.engines.session import Session
from stan_infer.errors import MissingError
from stan_infer.network.eight_bits import NUMBER_FORMATS
from stan_infer.quantisation.bound import Comparison, Search

# Speed relative to the next higher precision in the same engine; at or below it nothing was gained.
NOT_FASTER = 1.05
# More rounds are timed, at most so often, while the intervals of the ratios hold NOT_FASTER: four
# times as many, which halve an interval, or as many again where other work had the CPUs.
ROUNDS, TRIES, MORE = 10, 3, 4
LONGEST_S = 300.0  # of one try; a large model is not timed for an hour because two speeds are close


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
    word = _video(quantised).precision
    is_simulated = NUMBER_FORMATS[word].is_float
    with ExitStack() as stack:
        candidates, absent = _candidates(exact, quantised, threads, stack)
        figures = {
            key: comparison.session(session)
            for key, (_, session) in candidates.items()
            if key not in (("ort", "fp32"), ("ort", word))
        }
        figures["ort", word] = search.best
        rounds = ROUNDS
        for _ in range(TRIES):
            start = time.monotonic()
            rows = _timed(exact, candidates, clips, rounds, threads)
            for row in rows:
                if (one := figures.get((row["engine"], row["precision"]))) is not None:
                    row |= {**one.figures(), "is_met": one.is_met}
            speeds = _speeds(rows, word)
            if is_simulated or is_faster(speeds) is not None:
                break
            more = 1 if any(s["is_starved"] for s in speeds.values()) else MORE
            if more * (time.monotonic() - start) > LONGEST_S:
                break
            rounds *= more
    return {
        "rows": rows + absent,
        "speeds": speeds,
        "is_faster": True if is_simulated else is_faster(speeds),
        "is_simulated": is_simulated,
        "is_met": search.best.is_met,
        "precision": word,
        **search.best.figures(),
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
    exact: Artefact,
    candidates: _Candidates,
    clips: Sequence[np.ndarray],
    rounds: int,
    threads: int,
) -> list[dict[str, Any]]:
    return bench_videos(
        [
            Candidate(
                f"{engine} {word}",
                session.embed_video,
                {**session.describe(), "threads": threads, "file_mib": _size(folder) / 2**20},
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


def _next(rows: Sequence[dict[str, Any]], engine: str) -> str:
    """The next higher precision that an engine runs here."""
    timed = [r["precision"] for r in rows if r.get("latency_ms_p50") and r["engine"] == engine]
    return "bf16" if "bf16" in timed else "fp32"


def _speeds(rows: Sequence[dict[str, Any]], word: str) -> dict[str, dict[str, Any]]:
    """By engine: the speed of 8 bits divided by that of the next higher precision there.

    ratio: the median over rounds; low, high: what it may be, see paired_ratio (None: too few
    rounds). is_starved: other work had the CPUs, so that the ratio says nothing. is_met: 8 bits
    keep the bound in the engine.
    """
    found = {}
    timed = {(r["engine"], r["precision"]): r for r in rows if "samples_ms" in r}
    for (engine, precision), row in timed.items():
        higher = timed.get((engine, _next(rows, engine)))
        if precision == word and higher:
            low, middle, high = paired_ratio(higher["samples_ms"], row["samples_ms"])
            found[engine] = {
                "beside": higher["precision"],
                "ratio": middle,
                "low": low,
                "high": high if math.isfinite(high) else None,
                "is_starved": bool(row.get("starved") or higher.get("starved")),
                "is_met": row["is_met"],
            }
    return found


def is_faster(speeds: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Whether 8 bits are faster in an engine where they keep the bound; None: it cannot be told."""
    usable = [s for s in speeds.values() if s["is_met"]]
    known = [s for s in usable if not s["is_starved"]]
    if any(s["low"] > NOT_FASTER for s in known):
        return True
    if len(known) < len(usable) or any((s["high"] or math.inf) > NOT_FASTER for s in known):
        return None
    return False


def _video(artefact: Artefact) -> Graph:
    graph = artefact.graph("video")
    assert graph is not None  # source.check_runnable
    return graph


def _size(artefact: Artefact) -> int:
    graph, files = _video(artefact), artefact.manifest["files"]
    return sum(files[n]["bytes"] for n in (graph.file, *graph.external_data))
