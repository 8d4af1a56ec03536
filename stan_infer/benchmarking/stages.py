"""Time each stage from a video file to scores, for every candidate in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.benchmarking.interleave import Candidate
from stan_infer.benchmarking.starvation import NOT_ITS_OWN, cpu_figures, let_others_sleep
from stan_infer.benchmarking.timing import WallClock
from stan_infer.config import StanConfig
from stan_infer.engines.inputs import as_numpy
from stan_infer.engines.session import read_config_clip
from stan_infer.errors import InputError, first_reasons
from stan_infer.scores import head_scores
from stan_infer.system.cpu_use import CpuMeter, CpuUse, MachineMeter
from stan_infer.system.machine import cpus_of_this_process

TEXTS = 100  # scored for each clip; their features are random, as speed does not depend on them
_DECODE_BOUND = "decode-bound: more CPUs that decode help, a faster engine does not"


def bench_stages(
    candidates: Sequence[Candidate],
    config: StanConfig,
    videos: Sequence[Path],
    *,
    repeats: int,
    on_round: Callable[[float], None],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Time decode (with sampling, resize and crop), embed (B = 1) and score; one row per candidate.

    In each of `repeats` rounds every video is read once and given to every candidate. A row has
    medians in milliseconds; total_ms_p50 is their sum. on_round: called after each round with its
    share of the work. Also returns why videos were left out; InputError if none can be read.
    """
    decode: list[float] = []
    embed: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    score: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    uses: dict[str, list[CpuUse]] = {candidate.name: [] for candidate in candidates}
    texts = _texts(config)
    wall, meter = WallClock(), CpuMeter()

    def warm(clip: np.ndarray) -> None:  # not counted: libraries are loaded and caches filled
        for candidate in candidates:
            texts(as_numpy(candidate.embed(clip[None])))

    good, failed = _readable(config, videos, warm)
    machine = MachineMeter(cpus_of_this_process())
    for _ in range(repeats):
        for video in good:
            clip, ms, _ = wall.time(partial(read_config_clip, config, video))
            decode.append(ms)
            for candidate in candidates:
                let_others_sleep()  # those that decode, too
                run = partial(candidate.embed, clip[None])
                (out, ms, _), use = meter.around(partial(candidate.clock.time, run))
                embed[candidate.name].append(ms)
                uses[candidate.name].append(use)
                _, ms, _ = wall.time(partial(texts, as_numpy(out)))
                score[candidate.name].append(ms)
        on_round(1 / repeats)
    seen = machine.read()
    common = {"frames": config.frames, "videos": len(good), "repeats": repeats}
    rows = []
    for candidate in candidates:
        samples = dict(decode=decode, embed=embed[candidate.name], score=score[candidate.name])
        row = {"engine": candidate.name, **candidate.facts, **common, **_figures(samples)}
        if candidate.is_on_cpu:
            threads = candidate.facts.get("threads")
            row |= cpu_figures(samples["embed"], uses[candidate.name], seen, threads=threads)
            row["doubts"] = [f"{why}; {NOT_ITS_OWN}" for why in row["starved"] or ()]
        rows.append(row)
    return rows, failed


def _figures(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the milliseconds of each stage, and what they say."""
    parts = {f"{name}_ms_p50": float(np.median(ms)) for name, ms in samples.items()}
    decode_bound = parts["decode_ms_p50"] > parts["embed_ms_p50"]
    return {
        **parts,
        "total_ms_p50": sum(parts.values()),
        "scored_texts": TEXTS,
        "diagnosis": [_DECODE_BOUND] if decode_bound else [],
        "samples_ms": samples,
    }


def _readable(
    config: StanConfig, videos: Sequence[Path], use: Callable[[np.ndarray], None]
) -> tuple[list[Path], dict[str, str]]:
    """Videos that can be read, whose clips are given to `use`, and the others with the reason."""
    good: list[Path] = []
    failed: dict[str, str] = {}
    for video in videos:
        try:
            clip = read_config_clip(config, video)
        except InputError as e:
            failed[str(video)] = str(e)
        else:
            good.append(video)
            use(clip)
    if not good:
        why = first_reasons(failed.values(), "no video was given")
        raise InputError(f"none of the {len(videos)} videos could be read: {why}")
    return good, failed


def _texts(config: StanConfig) -> Callable[[np.ndarray], Any]:
    """Return a function that scores one clip's features against TEXTS texts."""
    rng = np.random.default_rng(0)
    tokens = (config.context_length,) if config.is_mug else ()
    text = rng.standard_normal((TEXTS, *tokens, config.embed_dim), np.float32)
    mask = np.ones((TEXTS, config.context_length), np.int64)
    return lambda video: head_scores(config.head, text, mask, video, tau=config.mug_tau)
