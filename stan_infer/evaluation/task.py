"""What an evaluation asks: which text or class belongs to which video."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import NamedTuple

from stan_infer.errors import InputError, nearest
from stan_infer.text.labels import Labels
from stan_infer.video.find import video_stem

_SHOWN = 5  # names in a message
SPLITS = ("split", "subset")  # keys and columns that name it
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Task:
    """What to evaluate. Retrieval: texts and owners; recognition: labels and classes.

    videos: names as the file has them, with or without a suffix, each once. owners: for each text
    the index of its video. labels: for each video the index of its class. categories: for each
    video its category, "" where it has none; empty for a file without.
    """

    videos: tuple[str, ...]
    texts: tuple[str, ...] = ()
    owners: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def is_retrieval(self) -> bool:
        """Whether texts search videos, rather than videos have classes."""
        return not self.classes

    def keep(self, kept: Sequence[int]) -> Task:
        """Return the task with only these videos (indices), and their texts; classes all stay."""
        place = {old: new for new, old in enumerate(kept)}
        pairs = [(t, place[o]) for t, o in zip(self.texts, self.owners, strict=True) if o in place]
        return dataclasses.replace(
            self,
            videos=tuple(self.videos[i] for i in kept),
            texts=tuple(t for t, _ in pairs),
            owners=tuple(o for _, o in pairs),
            labels=tuple(self.labels[i] for i in kept) if self.labels else (),
            categories=tuple(self.categories[i] for i in kept) if self.categories else (),
        )


class Pair(NamedTuple):
    """A video and what a file says of it: a text, or a class by its name or number."""

    video: str
    text: str
    place: str  # where it stands, for messages: "line 3"
    category: str = ""  # of the video


def retrieval_task(pairs: Iterable[Pair], name: str, *, joined: bool = False) -> Task:
    """Make a retrieval task in file order; pairs with a blank text or video are told and left out.

    joined: all texts of a video are one query, and names that differ in their suffixes only are one
    video (its first name stays): DiDeMo. Raises InputError where no text is left.
    """
    videos: dict[str, tuple[int, str]] = {}
    texts: list[tuple[int, str]] = []
    blank: list[str] = []
    names = set()
    categories: dict[str, str] = {}
    for video, text, place, category in pairs:
        video, text = video.strip(), text.strip()
        if not video or not text:
            blank.append(place)
            continue
        names.add(video)
        key = video_stem(video) if joined else video
        categories[key] = categories.get(key) or category.strip()
        texts.append((videos.setdefault(key, (len(videos), video))[0], text))
    if blank:
        _log.warning(
            "%s: %d without a text or a video are left out: %s", name, len(blank), listed(blank)
        )
    if not texts:
        raise InputError(f"{name} holds no text; is it the data set's test file?")
    if len(names) > len(videos):
        _log.warning(
            "%s: %d names are %d videos, as names that differ in their suffix only are one",
            name, len(names), len(videos),
        )  # fmt: skip
    if joined:
        parts: list[list[str]] = [[] for _ in videos]
        for owner, text in texts:
            parts[owner].append(text)
        texts = [(i, " ".join(part)) for i, part in enumerate(parts)]
    return Task(
        videos=tuple(video for _, video in videos.values()),
        texts=tuple(text for _, text in texts),
        owners=tuple(owner for owner, _ in texts),
        categories=tuple(categories[v] for v in videos) if any(categories.values()) else (),
    )


def recognition_task(pairs: Iterable[Pair], name: str) -> Task:
    """Make a recognition task of videos with a class each, by its name or by its number.

    Numbers without names leave `classes` empty: see `name_classes`. Raises InputError.
    """
    found: dict[str, str] = {}
    categories: dict[str, str] = {}
    for video, label, place, category in pairs:
        video, label = video.strip(), label.strip()
        if not video or not label:
            raise InputError(f"{name}, {place}: the video or its class is blank")
        if found.setdefault(video, label) != label:
            raise InputError(f"{name}, {place}: video {video[:60]} has a second class")
        categories[video] = categories.get(video) or category.strip()
    if not found:
        raise InputError(f"{name} holds no video with a class")
    own = tuple(categories[v] for v in found) if any(categories.values()) else ()
    numbers = {label for label in found.values() if label.isascii() and label.isdigit()}
    if numbers and len(numbers) < len(set(found.values())):
        other = next(label for label in found.values() if label not in numbers)
        raise InputError(
            f"{name}: class {min(numbers)[:20]} is a number, class {other[:60]!r} is a name; give "
            "one kind"
        )
    if numbers:
        long = next((n for n in numbers if len(n) > 9), None)
        if long is not None:
            raise InputError(f"{name}: class {long[:20]} is not a number of a class")
        return Task(tuple(found), labels=tuple(map(int, found.values())), categories=own)
    if all(re.fullmatch(r"-?\d+(\.\d*)?", label) for label in found.values()):
        shown = next(iter(found.values()))
        raise InputError(f"{name}: class {shown[:20]} is not a whole number from 0 on")
    classes = sorted(set(found.values()))
    number = {c: i for i, c in enumerate(classes)}
    return Task(
        tuple(found),
        labels=tuple(number[c] for c in found.values()),
        classes=tuple(classes),
        categories=own,
    )


def name_classes(task: Task, labels: Labels, name: str) -> Task:
    """Give the task the class names of --labels: by their numbers, or where it has names by those.

    Raises InputError for a class that --labels lacks.
    """
    if not task.labels:
        raise InputError(f"{name} has texts, not classes: --labels belongs to recognition")
    if task.classes:
        lower = Counter(c.lower() for c in labels.names)
        place = {c.lower(): i for i, c in enumerate(labels.names) if lower[c.lower()] == 1}
        place |= {c: i for i, c in enumerate(labels.names)}
        own = [c if c in place else c.lower() for c in task.classes]
        lost = [c for c, key in zip(task.classes, own, strict=True) if key not in place]
        if lost:
            raise InputError(
                f"{name} has classes that --labels lacks: {listed(lost)}"
                f"{nearest(lost[0], labels.names)}"
            )
        found = [place[own[i]] for i in task.labels]
        return dataclasses.replace(task, labels=tuple(found), classes=labels.names)
    index = {number: i for i, number in enumerate(labels.numbers)}
    unknown = sorted(set(task.labels) - index.keys())
    if unknown:
        raise InputError(
            f"{name} has class number {unknown[-1]}, but --labels has {len(index)} names, for "
            f"numbers {labels.numbers[0]} to {labels.numbers[-1]}"
            + (", and a blank line or a gap there" if unknown[-1] < labels.numbers[-1] else "")
        )
    lowest = min(task.labels)
    if lowest == 1 and labels.numbers[0] == 0:
        _log.warning(
            "%s: no video has class 0, and the lowest number is 1; if its numbers count from 1, "
            "every class here is the next one: give --labels with numbers, such as a table id,name",
            name,
        )
    return dataclasses.replace(
        task, labels=tuple(index[i] for i in task.labels), classes=labels.names
    )


def keep_videos(task: Task, wanted: Sequence[str], name: str) -> Task:
    """Keep the videos of a list (a split): a name that the task has means that video only.

    Any other name means the videos of the same stem. Names that fit none are counted and told.
    Raises InputError where nothing is left.
    """
    place = {video: i for i, video in enumerate(task.videos)}
    stems: dict[str, list[int]] = {}
    for video, i in place.items():
        stems.setdefault(video_stem(video), []).append(i)
    kept: set[int] = set()
    unknown = []
    for video in dict.fromkeys(wanted):
        own = [place[video]] if video in place else stems.get(video_stem(video), [])
        folder = PurePath(video).parent
        if len(own) > 1 and folder.name:
            # Of videos that differ in their folders only the named one.
            own = [i for i in own if PurePath(task.videos[i]).parent == folder]
        kept.update(own)
        if not own:
            unknown.append(video)
    if not kept:
        raise InputError(f"none of the {len(wanted)} videos of the subset are in {name}")
    if unknown:
        _log.warning("%d of the %d names of the subset are not in %s: %s", len(unknown),
                     len(wanted), name, listed(unknown))  # fmt: skip
    return task.keep(sorted(kept))


def tell_splits(rows: Iterable[object], name: str) -> None:
    """Warn where JSON objects, or rows as such, say that they are of several splits."""
    own = (next((r[k] for k in SPLITS if k in r), None) for r in rows if isinstance(r, dict))
    found = Counter(str(split) for split in own if isinstance(split, (str, int)))
    if len(found) > 1:
        counts = listed([f"{split} ({count})" for split, count in found.most_common()])
        _log.warning("%s has several splits, and all are evaluated: %s; --subset keeps the videos "
                     "of one", name, counts)  # fmt: skip


def listed(names: Sequence[str]) -> str:
    """The first few names for a message."""
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(n[:60] for n in names[:_SHOWN]) + more
