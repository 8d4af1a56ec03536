"""Two models on the same questions: the difference of their figures, paired answer by answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from stan_infer.errors import InputError, printable
from stan_infer.evaluation.answers import RECALLS, Answers, asked, candidates
from stan_infer.evaluation.metrics import paired_interval
from stan_infer.evaluation.task import Task
from stan_infer.system.json_file import checked, read_object

RECORD = "metrics.json"  # in the folder that --out writes
_MAX_BYTES = 256 * 2**20  # 60,000 texts of MSR-VTT's full test take 5 MB
_HINT = "; give what `stan-infer eval --json` printed, or the folder of its --out"
# What differs by itself between two models, or is told in other words.
_OWN = {"split", "annotations", "annotations sha256", "missing", "unreadable", "videos", "copies"}
_OWN |= {"texts", "classes", "texts cut"}


class _Record(TypedDict):
    """A record of `eval`, as far as it is compared; hits, asked: by direction."""

    model: str
    session: dict[str, Any]
    protocol: dict[str, Any]
    candidates: str
    asked: dict[str, list[str]]
    hits: dict[str, dict[str, list[float]]]


@dataclasses.dataclass(frozen=True)
class Other:
    """The record of another evaluation. name: its path, for messages."""

    name: str
    record: _Record

    def check(self, task: Task) -> None:
        """Raise InputError unless some question of the task was answered there; before the work."""
        mine = asked(task)
        if mine.keys() != self.record["asked"].keys():
            kinds = {True: "retrieval", False: "recognition"}
            raise InputError(
                f"{self.name} is a record of {kinds[not task.is_retrieval]}, this is "
                f"{kinds[task.is_retrieval]}: they share no figure; compare runs of one data set"
            )
        if not any(set(ids) & set(self.record["asked"][name]) for name, ids in mine.items()):
            raise InputError(
                f"{self.name} answers other questions: not one of its "
                f"{len(next(iter(self.record['asked'].values())))} is in these annotations; "
                "compare runs on the same annotation file"
            )


def read_other(path: Path) -> Other:
    """Read a record of eval, or the folder that --out wrote. Raises InputError."""
    file = path / RECORD if path.is_dir() else path
    values = read_object(file, _MAX_BYTES, _HINT)
    if not str(values.get("schema")).startswith("stan-infer/eval/"):
        raise InputError(f"{file} is no record of an evaluation{_HINT}")
    if "asked" not in values:
        raise InputError(
            f"{file} does not say which questions were asked (it is of an older version): "
            "evaluate that model again"
        )
    record: Any = checked(values, _Record, str(file), _HINT)
    for direction, ids in record["asked"].items():
        hits = record["hits"].get(direction, {})
        known = RECALLS["videos" != direction]
        if len(set(ids)) != len(ids) or any(len(hits.get(n, ())) != len(ids) for n in known):
            raise InputError(
                f"{file} is malformed: {direction} has not one answer a question{_HINT}"
            )
        if any(not 0 <= x <= 1 for n in known for x in hits[n]):
            raise InputError(f"{file} is malformed: a hit of {direction} is not in 0 to 1{_HINT}")
    return Other(str(path), record)


def compared(answers: Answers, facts: Mapping[str, Any], other: Other) -> dict[str, Any]:
    """The record of the comparison, as JSON types; differences are this model minus the other.

    facts: the protocol of this evaluation. Keys: "with", "model"; "shared" and "asked" (here and
    there) by direction; "differs": settings with both values; "differences": by direction and
    figure difference and 95 % interval in points, and in how many answers each was right alone;
    "sentence".
    """
    theirs = other.record
    mine, hits = asked(answers.task), answers.hits
    shared: dict[str, int] = {}
    counts: dict[str, list[int]] = {}
    differences: dict[str, dict[str, Any]] = {}
    for direction, ids in mine.items():
        place = {name: i for i, name in enumerate(theirs["asked"][direction])}
        own = [i for i, name in enumerate(ids) if name in place]
        there = [place[ids[i]] for i in own]
        shared[direction], counts[direction] = len(own), [len(ids), len(place)]
        if own:
            differences[direction] = {
                name: _difference(hit[own], np.array(theirs["hits"][direction][name])[there])
                for name, hit in hits[direction].items()
            }
    differs = {
        name: [facts.get(name), theirs["protocol"].get(name)]
        for name in {**facts, **theirs["protocol"]}
        if name not in _OWN and facts.get(name) != theirs["protocol"].get(name)
    }
    if candidates(answers.task) != theirs["candidates"]:
        kind = "videos" if answers.task.is_retrieval else "classes"
        differs[f"{kind} to choose from"] = [facts.get(kind), theirs["protocol"].get(kind)]
    found = {
        "with": other.name,
        "model": theirs["model"],
        "shared": shared,
        "asked": counts,
        "differs": differs,
        "differences": differences,
    }
    return {**found, "sentence": _sentence(found)}


def _difference(mine: Any, theirs: Any) -> dict[str, Any]:
    """In points; hits are between 0 and 1, as a tie may count in part."""
    gained, lost = np.clip(mine - theirs, 0, None).sum(), np.clip(theirs - mine, 0, None).sum()
    low, high = paired_interval(float(gained), float(lost), len(mine))
    return {
        "difference": 100 * float(gained - lost) / len(mine),
        "interval": [100 * low, 100 * high],
        "only this": float(gained),
        "only the other": float(lost),
    }


def _sentence(found: Mapping[str, Any]) -> str:
    direction, figures = next(iter(found["differences"].items()))
    name, first = next(iter(figures.items()))
    d, (low, high) = first["difference"], first["interval"]
    shared, (here, there) = found["shared"][direction], found["asked"][direction]
    questions = "texts" if direction == "text_to_video" else "videos"
    other = printable(f"{Path(found['model']).name} in {found['with']}")
    whole = shared == here == there
    where = (
        f"the same {shared} {questions}"
        if whole
        else (f"the {shared} {questions} that both answered (of {here} here and {there} there)")
    )
    numbers = f"95 % interval {low:+.1f} to {high:+.1f}"
    if low <= 0 <= high:
        what = f"this model and of {other} cannot be told apart: {d:+.1f} points ({numbers})"
    else:
        word = "higher" if d > 0 else "lower"
        what = f"this model is {abs(d):.1f} points {word} than that of {other} ({numbers})"
    differs = printable(
        "; ".join(f"{n}: {a} here, {b} there" for n, (a, b) in found["differs"].items())
    )
    end = f"; the two runs also differ in {differs}" if differs else ""
    return f"On {where}, {name} of {what}{end}"
