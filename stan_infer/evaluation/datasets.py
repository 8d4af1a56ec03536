"""Read the annotation files of public data sets: which video belongs to which text or class.

The files are those that the data sets' authors publish; nothing is downloaded or unpickled. Each
reader turns the text of one file into a Task; DATASETS has the settings of the paper's tests.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from stan_infer.errors import InputError, check_word, nearest
from stan_infer.system.json_file import checked, parse_json
from stan_infer.system.outside_file import read_bounded, read_text
from stan_infer.video.find import video_stem

MAX_BYTES = 128 * 2**20  # the largest, MSR-VTT's and Kinetics' training files, have under 100 MB
_PICKLES = (b"\x80\x03", b"\x80\x04", b"\x80\x05")  # the first bytes of pickles
MAX_ROWS = 1_500_000  # a row takes 0.4 KiB; the longest list, Kinetics 700, has 650,000


@dataclasses.dataclass(frozen=True)
class Task:
    """What to evaluate: texts and owners of retrieval, or labels and classes of recognition.

    videos: names as in the file, with or without a suffix, each once. owners: for each text the
    index of its video. labels: for each video the index of its class.
    """

    videos: tuple[str, ...]
    texts: tuple[str, ...] = ()
    owners: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def is_retrieval(self) -> bool:
        """Whether texts search videos; else videos have classes."""
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
        )


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set: the reader of its file, and the settings of the authors' test configs.

    A setting that is None is taken from the model's config. frames, context_length: of the released
    config, or of the paper. resize: the short side as a multiple of the crop. mug_frames: frames in
    Mug-STAN's config, if others. settings_from: words for the protocol.
    """

    read: Callable[[str, str], Task]
    split: str
    frames: int | None = None
    context_length: int | None = None
    resize: float | None = None
    mug_frames: int | None = None
    settings_from: str = "released config"


def read_task(
    dataset: str,
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    subset: Iterable[str] | None = None,
) -> Task:
    """Read an annotation file of a data set in DATASETS.

    classes: class names, in the order of the class numbers of a file that has only numbers. subset:
    names of the videos to keep (a split). Raises InputError, which names the wrong line.
    """
    check_word("data set", dataset, DATASETS)
    task = DATASETS[dataset].read(_text(path), str(path))
    if classes is not None:
        task = _with_classes(task, classes, str(path))
    elif task.labels and not task.classes:
        raise InputError(
            f"{path} has class numbers without names: give the names, one per line, with --labels"
        )
    if subset is not None:
        wanted = {video_stem(name) for name in subset}
        kept = [i for i, name in enumerate(task.videos) if video_stem(name) in wanted]
        if not kept:
            raise InputError(f"none of the {len(wanted)} videos of the subset are in {path}")
        task = task.keep(kept)
    return task


def _text(path: Path) -> str:
    name, hint = f"the file of annotations {path}", "; give the data set's own annotation file"
    if read_bounded(path, MAX_BYTES, name=name, hint=hint)[:2] in _PICKLES:
        raise InputError(
            f"annotations {path} are a pickle, which can run code and is never loaded; give the "
            "text form that the data set's authors publish"
        )
    return read_text(path, MAX_BYTES, name=name, hint=hint)


def _pairs(pairs: Iterable[tuple[str, str]], name: str) -> Task:
    """Make a retrieval task of (video, text) in file order."""
    place: dict[str, int] = {}  # index of each video
    texts: list[str] = []
    owners: list[int] = []
    for video, text in pairs:
        if not video.strip() or not text.strip():
            raise InputError(f"{name}: text {len(texts) + 1} or its video's name is blank")
        owners.append(place.setdefault(video.strip(), len(place)))
        texts.append(text.strip())
    if not texts:
        raise InputError(f"{name} holds no text; is it the data set's test file?")
    return Task(videos=tuple(place), texts=tuple(texts), owners=tuple(owners))


def _labelled(pairs: Iterable[tuple[str, str]], name: str) -> Task:
    """Make a recognition task of (video, class name or number)."""
    found: dict[str, str] = {}
    for video, label in pairs:
        if not video.strip() or not label.strip():
            raise InputError(f"{name}: video {len(found) + 1} or its class is blank")
        if found.setdefault(video.strip(), label.strip()) != label.strip():
            raise InputError(f"{name} gives video {video[:60]} two classes")
    if not found:
        raise InputError(f"{name} holds no video with a class")
    if all(label.isascii() and label.isdigit() for label in found.values()):
        labels = tuple(int(label[:9]) for label in found.values())
        return Task(videos=tuple(found), labels=labels)
    classes = sorted(set(found.values()))
    place = {c: i for i, c in enumerate(classes)}
    return Task(
        videos=tuple(found),
        labels=tuple(place[c] for c in found.values()),
        classes=tuple(classes),
    )


def _with_classes(task: Task, classes: Sequence[str], name: str) -> Task:
    """Give the task these classes; if it has class names of its own, labels are matched by name."""
    if task.is_retrieval and not task.labels:
        raise InputError(f"{name} has texts, not classes: --labels belongs to recognition")
    if len(set(classes)) != len(classes):
        raise InputError("--labels has a class name twice: give each class once")
    if task.classes:
        place = {c.lower(): i for i, c in enumerate(classes)}
        unknown = [c for c in task.classes if c.lower() not in place]
        if unknown:
            raise InputError(
                f"{name} has classes that --labels lacks: {', '.join(c[:60] for c in unknown[:5])}"
                f"{nearest(unknown[0], list(classes))}"
            )
        labels = tuple(place[task.classes[i].lower()] for i in task.labels)
        return dataclasses.replace(task, labels=labels, classes=tuple(classes))
    if max(task.labels) >= len(classes):
        raise InputError(
            f"{name} has class number {max(task.labels)}, but --labels has {len(classes)} lines "
            "(numbers start at 0)"
        )
    return dataclasses.replace(task, classes=tuple(classes))


def _rows(text: str, name: str, delimiter: str, columns: int) -> list[list[str]]:
    """Rows of a table without a header, of at least `columns` cells."""
    rows: list[list[str]] = []
    # In tab-separated files a quote is a part of the caption.
    style: Any = {"quoting": csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE}
    try:
        for row in csv.reader(io.StringIO(text), delimiter=delimiter, **style):
            if not row or not "".join(row).strip():
                continue
            if len(row) < columns:
                raise InputError(
                    f"{name}, row {len(rows) + 1}: {len(row)} cells; need at least {columns}"
                )
            rows.append(row)
            if len(rows) > MAX_ROWS:
                raise InputError(f"{name} has more than {MAX_ROWS} rows")
    except csv.Error as e:
        raise InputError(f"{name}, row {len(rows) + 1}: {e}") from e
    return rows


def _table(text: str, name: str, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a table whose header names at least the `needed` columns."""
    rows = _rows(text, name, ",", len(needed))
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    missing = [column for column in needed if column not in header]
    if missing:
        raise InputError(
            f"{name}: the first line has no column {', '.join(missing)}; it needs "
            f"{', '.join(needed)} (found: {', '.join(header)[:200]})"
        )
    short = next((i for i, row in enumerate(rows) if len(row) < len(header)), None)
    if short is not None:
        raise InputError(f"{name}, row {short + 1}: {len(rows[short])} of {len(header)} cells")
    return [dict(zip(header, row, strict=False)) for row in rows[1:]]


_LISTS = '{"video": ["text", ...]}'
_FORMS = {
    "msrvtt": f"; need 'sentences' with 'video_id' and 'caption', or {_LISTS}",
    "didemo": f"; need a list of entries with 'video' and 'description', or {_LISTS}",
    "ssv2": "; need a list of entries with 'id' and 'template'",
}
Texts = dict[str, list[str] | str]  # {"video": ["text", ...]} or {"video": "text"}


class _Sentence(TypedDict):
    """A caption of MSR-VTT."""

    video_id: str | int
    caption: str | int


class _Sentences(TypedDict):
    sentences: list[_Sentence]


class _Moment(TypedDict):
    """A moment of DiDeMo."""

    video: str | int
    description: str | int


class _Clip(TypedDict):
    """A video of Something-Something v2."""

    id: str | int
    template: str | int


def _mapping(texts: Texts) -> Iterable[tuple[str, str]]:
    for video, given in texts.items():
        for text in [given] if isinstance(given, str) else given:
            yield video, text


def _read_msrvtt(text: str, name: str) -> Task:
    """CSV of the 1k-A split, MSRVTT_data.json, or {"video": ["text", ...]}."""
    if not text.lstrip().startswith(("{", "[")):
        rows = _table(text, name, ("video_id", "sentence"))
        return _pairs([(r["video_id"], r["sentence"]) for r in rows], name)
    data = parse_json(text, name)
    if isinstance(data, dict) and "sentences" in data:
        found = checked(data, _Sentences, name, _FORMS["msrvtt"])["sentences"]
        return _pairs([(str(s["video_id"]), str(s["caption"])) for s in found], name)
    return _pairs(_mapping(checked(data, Texts, name, _FORMS["msrvtt"])), name)


def _read_didemo(text: str, name: str) -> Task:
    """List of {"video", "description"}; a video's descriptions are joined to one text."""
    data = parse_json(text, name)
    if isinstance(data, dict):
        entries = list(_mapping(checked(data, Texts, name, _FORMS["didemo"])))
    else:
        moments = checked(data, list[_Moment], name, _FORMS["didemo"])
        entries = [(str(m["video"]), str(m["description"])) for m in moments]
    joined: dict[str, list[str]] = {}
    for video, description in entries:
        joined.setdefault(video, []).append(description.strip())
    return _pairs([(video, " ".join(parts)) for video, parts in joined.items()], name)


def _read_lsmdc(text: str, name: str) -> Task:
    """Tab-separated: clip, four times, sentence; no header."""
    rows = _rows(text, name, "\t", 6)
    return _pairs([(row[0], row[5]) for row in rows], name)


def _read_msvd(text: str, name: str) -> Task:
    """AllVideoDescriptions.txt: "VIDEO_START_END a sentence" lines after a comment."""
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        video, _, sentence = line.strip().partition(" ")
        if not re.fullmatch(r".+_\d+_\d+", video) or not sentence.strip():
            raise InputError(f"{name}, line {number}: need VIDEO_START_END and a sentence")
        pairs.append((video, sentence))
    return _pairs(pairs, name)


def _read_kinetics(text: str, name: str) -> Task:
    """The official CSV (label, youtube_id, time_start, time_end), or "path label" lines."""
    if "youtube_id" not in text.split("\n", 1)[0].lower():
        return _read_list(text, name)
    pairs = []
    for row in _table(text, name, ("label", "youtube_id", "time_start", "time_end")):
        try:
            start, end = int(float(row["time_start"])), int(float(row["time_end"]))
        except (ValueError, OverflowError):
            video = row["youtube_id"][:60]
            raise InputError(f"{name}: {video} has times that are not numbers") from None
        pairs.append((f"{row['youtube_id']}_{start:06d}_{end:06d}", row["label"]))
    return _labelled(pairs, name)


def _read_ssv2(text: str, name: str) -> Task:
    """The official JSON ("id", "template" with its brackets taken out), or "path label" lines."""
    if not text.lstrip().startswith("["):
        return _read_list(text, name)
    clips = checked(parse_json(text, name), list[_Clip], name, _FORMS["ssv2"])
    return _labelled(
        [(str(c["id"]), re.sub(r"[\[\]]", "", str(c["template"]))) for c in clips], name
    )


def _read_list(text: str, name: str) -> Task:
    """Lines of a path and a label: separated by a tab, semicolon or comma, else by a space."""
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        separator = next((s for s in ("\t", ";", ",") if s in line), " ")
        video, found, label = line.strip().rpartition(separator)
        if not found:
            raise InputError(f"{name}, line {number}: need a video and a class")
        pairs.append((video, label))
    return _labelled(pairs, name)


def _read_texts(text: str, name: str) -> Task:
    """CSV with the columns video and text, or {"video": ["text", ...]}."""
    if text.lstrip().startswith("{"):
        return _pairs(
            _mapping(checked(parse_json(text, name), Texts, name, f"; need {_LISTS}")), name
        )
    rows = _table(text, name, ("video", "text"))
    return _pairs([(r["video"], r["text"]) for r in rows], name)


def _read_classes(text: str, name: str) -> Task:
    """CSV with the columns video and label, or lines of "path label"."""
    if not re.match(r"\s*(video|label)\s*,", text, re.IGNORECASE):
        return _read_list(text, name)
    return _labelled(
        [(r["video"], r["label"]) for r in _table(text, name, ("video", "label"))], name
    )


_PAPER = "the paper's recognition tests"
DATASETS: dict[str, DataSet] = {
    "msrvtt": DataSet(_read_msrvtt, "1k-A test", 12, 32, 1.0, mug_frames=32),
    "didemo": DataSet(_read_didemo, "test", 64, 77, 256 / 224),
    "lsmdc": DataSet(_read_lsmdc, "1000 public test", 12, 32, 1.0),
    "msvd": DataSet(
        _read_msvd, "test", 12, 32, 1.0, settings_from="MSR-VTT's config: none was released"
    ),
    "kinetics400": DataSet(_read_kinetics, "validation", 8, 32, 1.0, settings_from=_PAPER),
    "ssv2": DataSet(_read_ssv2, "validation", 8, 32, 1.0, settings_from=_PAPER),
    "retrieval": DataSet(_read_texts, "as in the file", settings_from="the model's own config"),
    "recognition": DataSet(_read_classes, "as in the file", settings_from="the model's own config"),
}
