"""What a calibration found, in one sentence that has what its figures rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.evaluation.metrics import paired_interval
from stan_infer.quantisation.bound import Bound, Measured

_MOST = 1_000_000  # questions; a bound that needs more is not worth a number


def deciding(value: float, limit: float, digits: int) -> str:
    """`value` with at least `digits` decimals: more where rounding would take it past `limit`."""
    for count in range(digits, 17):
        text = f"{value:.{count}f}"
        if np.sign(float(text) - limit) == np.sign(value - limit):
            return text
    return repr(value)


def in_words(measured: Measured, bound: Bound) -> str:
    """What 8 bits keep or lose, in so many digits that one sees whether the bound holds."""
    if measured.drop is None or measured.interval is None:
        cosine = deciding(measured.cosine or 0.0, bound.min_cosine, 5)
        return f"a smallest cosine to fp32 of {cosine}"
    limit = bound.max_drop
    low, high = (_points(points, limit) for points in measured.interval)
    return f"{_points(measured.drop, limit)} of {bound.metric} (95 %: between {low} and {high})"


def _points(drop: float, limit: float) -> str:
    """A loss, or a gain."""
    return f"{deciding(abs(drop), limit, 2)} points {'lost' if drop >= 0 else 'gained'}"


def asked(bound: Bound) -> str:
    """The bound in words."""
    if bound.task is not None:
        return f"at most {bound.max_drop:g} points lost"
    return f"a cosine of {bound.min_cosine:g}"


def rests_on(record: Mapping[str, Any], bound: Bound) -> str:
    """What the accuracy rests on. record: of the calibration."""
    checked, ranged = record["checked"], _counted(record["clips"], "clip")
    if not checked:
        return f"measured on the {ranged} that set the ranges"
    if bound.task is not None:
        what = "text" if bound.task.is_retrieval else "labelled clip"
        return f"checked on {_counted(checked, what)} held out, while {ranged} set the ranges"
    return (
        f"checked on {_counted(checked, 'clip')} held out, while {ranged} set the ranges (about 1 "
        f"in {checked + 1} clips like these is lower)"
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def label_remarks(bound: Bound, whole: Bound, double: Mapping[Path, Path]) -> list[str]:
    """What makes a task say less than its number of questions.

    bound: what is checked. whole: the same with all videos, as asked for. double: see Parts.
    """
    task, everything = bound.task, whole.task
    if task is None or everything is None:
        return []
    found = []
    if double:
        found.append(
            f"{_counted(len(double), 'labelled video')} with the content of another left out"
        )
    if everything.labels:
        label = dict(zip(whole.paths, everything.labels, strict=True))
        torn = [p for p, kept in double.items() if kept in label and label[p] != label[kept]]
        if torn:
            names = f"{torn[0].name} and {double[torn[0]].name}"
            found.append(f"{_counted(len(torn), 'content')} with two labels ({names})")
    if not task.is_retrieval:
        asked_for = {
            label for label, counts in zip(task.labels, bound.counts, strict=True) if counts
        }
        if len(task.classes) == 1:
            found.append("there is only one class, so that every answer is right")
        elif len(asked_for) == 1:
            found.append(f"all have one class, {task.classes[asked_for.pop()]}")
    elif len(task.videos) == 1:
        found.append("there is only one video, so that every answer is right")
    return found


def needed(bound: Bound) -> int | None:
    """How many questions, none of which changes, put the interval within the bound."""
    limit = bound.max_drop / 100
    low, high = 0, _MOST
    if paired_interval(0, 0, high)[1] > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if paired_interval(0, 0, middle)[1] <= limit else (middle, high)
    return high


def sentence(record: Mapping[str, Any], bound: Bound, measured: Measured) -> str:
    """The verdict in one sentence. record: of the calibration, with `kept` and `verdict`."""
    found = _sentence(record, bound, measured)
    return found if record["checked"] else f"not checked on other clips; {found}"


def _sentence(record: Mapping[str, Any], bound: Bound, measured: Measured) -> str:
    verdict, kept = record["verdict"], record["kept"]
    word, rests = verdict["precision"], rests_on(record, bound)
    back = f" with {_counted(len(kept), 'linear')} in fp32" if kept else ""
    notes = "".join(f"; {note}" for note in record["remarks"])
    if not verdict["is_met"]:
        best = f"the best found{back} has {in_words(measured, bound)}"
        return f"{word} does not reach {asked(bound)}: {best}, {rests}{notes}"
    cost = f"{in_words(measured, bound)}{_elsewhere(verdict)}{back}, {rests}"
    missed = [r["engine"] for r in verdict["rows"] if _misses(r, word)]
    cost += f"; in {', '.join(missed)} it misses the bound" if missed else ""
    cost += _doubt(bound, measured, record["checked"]) + notes
    if verdict["is_simulated"]:
        return f"{word} has {cost}; it is for GPUs from sm_89 on: speed not measured here"
    return _with_speed(verdict, cost)


def _elsewhere(verdict: Mapping[str, Any]) -> str:
    """The cosine in other engines than ONNX Runtime, where the bound is held, if it is another."""
    own = [row for row in verdict["rows"] if row["precision"] == verdict["precision"]]
    cosines = {r["engine"]: f"{r['cosine']:.5f}" for r in own if r.get("cosine") is not None}
    held = cosines.pop("ort", None)
    found = [f"{cosine} in {engine}" for engine, cosine in cosines.items() if cosine != held]
    return f" in {_listed(['ort', *found])}" if found else ""


def _misses(row: Mapping[str, Any], word: str) -> bool:
    return row["precision"] == word and row.get("is_met") is False


def _doubt(bound: Bound, measured: Measured, count: int) -> str:
    """Says where the interval of a task goes past the bound that the estimate keeps."""
    if measured.interval is None or measured.interval[1] <= bound.max_drop:
        return ""
    more = needed(bound)
    told = f": {more} or more would tell" if more is not None and more > count else ""
    return f"; only the estimate keeps {asked(bound)}, the interval does not{told}"


def _with_speed(verdict: Mapping[str, Any], cost: str) -> str:
    word, speeds = verdict["precision"], verdict["speeds"]
    if not speeds:
        rows = [r for r in verdict["rows"] if r["precision"] == word]
        return f"{word} runs in no engine here: {'; '.join(r['refused'] for r in rows)}"
    by = "low" if verdict["is_faster"] else "ratio"
    order = sorted(speeds, key=lambda e: (_is_usable(speeds[e]), speeds[e][by]), reverse=True)
    told = speeds_in_words({engine: speeds[engine] for engine in order})
    if verdict["is_faster"]:
        return f"{word} is faster here: {told}; it has {cost}"
    if verdict["is_faster"] is None:
        return (
            f"whether {word} is faster cannot be told on this machine now: {told}; run it again "
            f"when nothing else runs; {word} has {cost}"
        )
    return f"{word} is no faster here: {told}; it has {cost}; use {speeds[order[0]]['beside']}"


def _is_usable(speed: Mapping[str, Any]) -> bool:
    return bool(speed["is_met"] and not speed["is_starved"])


def speeds_in_words(speeds: Mapping[str, Mapping[str, Any]]) -> str:
    """By engine a ratio of speeds and what it may be; then those of which nothing is known."""
    told = list[str]()
    for engine, speed in speeds.items():
        if not speed["is_starved"]:
            of = "" if told else " the speed"
            told.append(f"{spread_in_words(speed)}{of} of {speed['beside']} in {engine}")
    if starved := [engine for engine, speed in speeds.items() if speed["is_starved"]]:
        verb = "was" if len(starved) == 1 else "were"
        told.append(f"other work used the CPUs while {_listed(starved)} {verb} timed")
    return ", ".join(told)


def _listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def spread_in_words(speed: Mapping[str, Any]) -> str:
    """A ratio of speeds and what it may be."""
    if speed["high"] is None:
        return f"{speed['ratio']:.2f}x (too few rounds to know)"
    return f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})"


def table_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of text per engine and precision that was timed. record: of the calibration."""
    verdict, limits, rows = record["verdict"], record["bound"], []
    for row in verdict["rows"]:
        speed = verdict["speeds"].get(row["engine"])
        if speed and row["precision"] == verdict["precision"]:
            words = f"{spread_in_words(speed)} of {speed['beside']}"
            row = {**row, "speed": "starved" if speed["is_starved"] else words}
        if row.get("starved"):
            row = {**row, "latency_ms_p50": f"({row['latency_ms_p50']:.4g})"}
        if row.get("cosine") is not None:
            row = {**row, "cosine": deciding(row["cosine"], limits["min_cosine"], 5)}
        if row.get("interval"):
            low, high = (_points(points, limits["max_drop"]) for points in row["interval"])
            row = {**row, "interval": f"{low} to {high}"}
        rows.append(row)
    return rows


def facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What was found of 8 bits, with the verdict's sentence. record: of the calibration."""
    verdict, found = record["verdict"], dict[str, Any]()
    if verdict["drop"] is None:
        cosine = deciding(verdict["cosine"], record["bound"]["min_cosine"], 5)
        found |= {
            "smallest cosine, ort": cosine,
            "mean cosine, ort": f"{verdict['mean_cosine']:.5f}",
        }
    else:
        found |= {"drop": verdict["drop"], "agreement": verdict["agreement"]}
    found["ranges from"] = _counted(record["clips"], "clip")
    what = "other clip" if verdict["drop"] is None else "other question"
    found["checked on"] = _counted(record["checked"], what)
    if record["kept"]:
        found["in fp32"] = ", ".join(record["kept"])
    return {**found, "verdict": verdict["sentence"]}
