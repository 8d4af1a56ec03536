"""What 8 bits gain and cost: measured on the same clips, beside fp32, in one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.folder import Artefact
from stan_infer.benchmarking.interleave import Candidate, Schedule, bench_videos
from stan_infer.engines.open import open_session
from stan_infer.engines.session import Session, as_numpy
from stan_infer.errors import InputError, MissingError, check_word
from stan_infer.evaluation.datasets import Task
from stan_infer.evaluation.evaluate import Protocol, evaluate
from stan_infer.evaluation.metrics import bootstrap_interval

METRICS = ("top1", "r1")
# Times the next higher precision in the same engine: at or below it, nothing was gained. Medians of
# ten interleaved runs differ by as much on a shared machine when nothing is different.
NOT_FASTER = 1.05


@dataclasses.dataclass(frozen=True)
class Measured:
    """One folder on the clips of a bound. hits: per question, with a task."""

    embeds: np.ndarray | None
    hits: np.ndarray | None
    cosine: float | None = None  # the smallest
    mean_cosine: float | None = None
    drop: float | None = None  # points
    interval: tuple[float, float] | None = None
    agreement: float | None = None  # percent
    is_met: bool = True

    def figures(self) -> dict[str, Any]:
        """What was measured, for a record."""
        names = ("cosine", "mean_cosine", "drop", "interval", "agreement")
        return {n: getattr(self, n) for n in names}

    @property
    def score(self) -> float:
        """Larger is better."""
        return -self.drop if self.drop is not None else float(self.cosine or -1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """What must hold: a smallest cosine to fp32, or, with a task, at most `max_drop` points lost.

    metric: top1 (recognition) or r1 (text to video). paths: the task's videos, in its order.
    """

    min_cosine: float | None = None
    max_drop: float | None = None
    metric: str = "top1"
    task: Task | None = None
    paths: Sequence[Path] = ()

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        check_word("metric", self.metric, METRICS)
        if (self.min_cosine is None) == (self.max_drop is None):
            raise InputError("give one bound: a smallest cosine, or a largest drop of a metric")
        if self.max_drop is not None and (self.task is None or not self.paths):
            raise InputError(f"a bound on {self.metric} needs labelled videos: --labels FILE")
        if self.min_cosine is not None and not 0 < self.min_cosine <= 1:
            raise InputError(f"min_cosine is {self.min_cosine:g}; allowed is 0 to 1")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise InputError(f"max_drop is {self.max_drop:g} points; allowed are 0 to 100")
        if self.task is not None and self.task.is_retrieval != (self.metric == "r1"):
            word = "retrieval (video,text)" if self.metric == "r1" else "recognition (video,label)"
            raise InputError(f"metric {self.metric} needs labels of {word}")

    def measure(
        self, artefact: Artefact, base: Measured | None, clips: Sequence[np.ndarray], o: Any
    ) -> Measured:
        """Run a folder in ONNX Runtime; with `base`, that of fp32, compare."""
        session = open_session(artefact.path, "ort", threads=o.threads)
        try:
            return self.measure_session(session, base, clips, o)
        finally:
            session.close()

    def measure_session(
        self, session: Session, base: Measured | None, clips: Sequence[np.ndarray], o: Any
    ) -> Measured:
        """See measure."""
        found = self._run(session, clips, o)
        if base is None:
            return found
        if found.hits is not None and base.hits is not None:
            lost = base.hits - found.hits
            drop = 100 * float(lost.mean())
            low, high = bootstrap_interval(lost)
            assert self.max_drop is not None
            return dataclasses.replace(
                found,
                drop=drop,
                interval=(100 * low, 100 * high),
                agreement=100 * float((lost == 0).mean()),
                is_met=drop <= self.max_drop,
            )
        a, b = found.embeds, base.embeds
        assert a is not None and b is not None and self.min_cosine is not None
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        cosines = (a * b).sum(-1) / norms
        cosine = float(cosines.min())
        return dataclasses.replace(
            found,
            cosine=cosine,
            mean_cosine=float(cosines.mean()),
            is_met=bool(cosine >= self.min_cosine),  # a NaN fails
        )

    def tell(self, m: Measured) -> str:
        """One measurement in words."""
        if m.drop is not None and m.interval is not None:
            low, high = m.interval
            return f"{_lost(m.drop)} ({low:.2f} to {high:.2f}) of {self.metric}"
        return f"smallest cosine {m.cosine:.5f}"

    def _run(self, session: Session, clips: Sequence[np.ndarray], o: Any) -> Measured:
        if self.task is not None:
            protocol = Protocol(session.config)
            result = evaluate(
                session, self.task, self.paths, protocol, workers=o.workers, timeout_s=o.timeout_s
            )
            key = "text_to_video" if self.task.is_retrieval else "videos"
            outcomes = np.array(result.outcomes[key])
            return Measured(None, (outcomes == 1).astype(float))
        parts = [_mean(as_numpy(session.embed_video(c[None]))) for c in clips]
        return Measured(np.concatenate(parts), None)


def judge(
    artefact: Artefact,
    quantised: Artefact,
    measured: Measured,
    compare: Callable[[Session], Measured],
    options: Any,
    clips: Sequence[np.ndarray],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time fp32, bf16 where it is, and 8 bits in every engine here; return rows and findings.

    measured: 8 bits in ONNX Runtime, which the bound is held to; compare: measures a session.
    clips: uint8 [T, S, S, 3], real ones, to time with.
    """
    say("timing")
    low = quantised.graph("video")
    assert low is not None
    quantised_word = low.precision
    sessions: list[tuple[str, str, Session]] = []
    absent: list[dict[str, Any]] = []
    wanted: list[tuple[str, Artefact, str | None]]
    wanted = [("ort", artefact, None), ("ort", quantised, None), ("openvino", artefact, None)]
    wanted += [("openvino", artefact, "bf16"), ("openvino", quantised, None)]
    candidates = []
    for engine, folder, precision in wanted:
        own = folder.graph("video")
        assert own is not None
        word = precision or own.precision
        try:
            session = open_session(
                folder.path, engine, precision=precision, threads=options.threads
            )
        except MissingError as e:
            absent.append({"engine": engine, "precision": word, "refused": str(e)})
            continue
        sessions.append((engine, word, session))
        facts = {**session.describe(), "file_mib": _size(folder) / 2**20}
        candidates.append(Candidate(f"{engine} {word}", session.embed_video, facts))
    try:
        others = {
            (engine, word): compare(session)
            for engine, word, session in sessions
            if (engine, word) not in (("ort", "fp32"), ("ort", quantised_word))
        }
        rows = bench_videos(
            candidates,
            side=artefact.config.image_size,
            flops=None,
            batches=[1],
            frames=[artefact.config.frames],
            schedule=Schedule(warmup=2, repeats=10, min_seconds=1.0),
            clips=[c[None] for c in clips],
        )
    finally:
        for _, _, session in sessions:
            session.close()
    others["ort", quantised_word] = measured
    for row in rows:
        one = others.get((row["engine"], row["precision"]))
        if one is not None:
            row |= {**one.figures(), "is_met": one.is_met}
    found = _ratios(rows, quantised_word)
    simulated = quantised_word == "fp8"
    is_slower = not simulated and not any(r > NOT_FASTER for r in found.values())
    return {
        "rows": rows + absent,
        "ratios": found,
        "is_slower": is_slower,
        "is_simulated": simulated,
        "is_met": measured.is_met,
        "precision": quantised_word,
        **measured.figures(),
        "file_ratio": _size(quantised) / _size(artefact),
    }


def sentence(verdict: dict[str, Any], bound: Bound, kept: Sequence[str]) -> str:
    """The verdict in one sentence."""
    word = verdict["precision"]
    if verdict["drop"] is not None:
        low, high = verdict["interval"]
        cost = f"{_lost(verdict['drop'])} ({low:.2f} to {high:.2f}) of {bound.metric}"
    else:
        cost = f"keeps a cosine of {verdict['cosine']:.5f}"
    back = f" with {len(kept)} linear{'s' * (len(kept) > 1)} in fp32" if kept else ""
    if not verdict["is_met"]:
        asked = (
            f"at most {bound.max_drop:g} points lost"
            if bound.max_drop is not None
            else f"a cosine of {bound.min_cosine:g}"
        )
        return f"{word} does not reach {asked}: the best found{back} {cost}"
    if verdict["is_simulated"]:
        return f"{word} {cost}{back}; it is for GPUs from sm_89 on: speed not measured here"
    ratios = verdict["ratios"]
    rows = [r for r in verdict["rows"] if r["precision"] == word]
    missed = [r["engine"] for r in rows if r.get("is_met") is False]
    back += f"; in {', '.join(missed)} it misses the bound" if missed else ""
    if not ratios:
        reasons = [r["refused"] for r in rows]
        return f"{word} runs in no engine here: {'; '.join(reasons)}"
    best = max(ratios, key=lambda e: ratios[e])
    others = [f"{ratios[e]:.2f}x in {e}" for e in ratios if e != best]
    beside = f" ({', '.join(others)})" if others else ""
    if verdict["is_slower"]:
        return (
            f"{word} is no faster here: {ratios[best]:.2f}x of {_next(verdict, best)} in "
            f"{best}{beside}; it {cost}{back}; use {_next(verdict, best)}"
        )
    return (
        f"{word} is {ratios[best]:.2f}x as fast as {_next(verdict, best)} in {best}{beside} and "
        f"{cost}{back}"
    )


def _next(verdict: dict[str, Any], engine: str) -> str:
    """The next higher precision that an engine runs here."""
    rows = [r for r in verdict["rows"] if r.get("latency_ms_p50") and r["engine"] == engine]
    words = [r["precision"] for r in rows if r["precision"] != verdict["precision"]]
    return "bf16" if "bf16" in words else "fp32"


def _ratios(rows: Sequence[dict[str, Any]], word: str) -> dict[str, float]:
    """By engine: how many times faster 8 bits are than the next higher precision there."""
    found = {}
    timed = {(r["engine"], r["precision"]): r for r in rows if "latency_ms_p50" in r}
    for (engine, precision), row in timed.items():
        if precision == word:
            higher = timed.get((engine, "bf16")) or timed.get((engine, "fp32"))
            if higher:
                found[engine] = row["speedup"] / higher["speedup"]  # both paired with one candidate
    return found


def _lost(points: float) -> str:
    return f"loses {points:.2f} points" if points >= 0 else f"gains {-points:.2f} points"


def _size(artefact: Artefact) -> int:
    graph = artefact.graph("video")
    assert graph is not None
    files = artefact.manifest["files"]
    return sum(files[n]["bytes"] for n in (graph.file, *graph.external_data))


def _mean(embeds: np.ndarray) -> np.ndarray:
    """[B, E], of a Mug head's [B, T, E] too."""
    return embeds.mean(1) if embeds.ndim == 3 else embeds
