"""Annotation files with classes -> (video, class name or number) pairs, in any form."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from stan_infer.errors import InputError, see
from stan_infer.evaluation.retrieval_files import (
    CATEGORY,
    TIMES,
    VIDEOS,
    category_of,
    json_lines,
    of_parts,
)
from stan_infer.evaluation.task import SPLITS, Pair, tell_splits
from stan_infer.system.json_file import parse_json
from stan_infer.system.table import DELIMITERS, MAX_ROWS, header_of, lines_of, read_table
from stan_infer.video.find import SUFFIXES

# Names first: where a file has both, its names tell more than numbers whose meaning lies elsewhere.
CLASSES = tuple(
    "label class class_name label_name classname category action activity template "
    "label_id class_id class_index label_number target".split()
)
FORMS = (
    "; read are lines of a video and a class (separated by comma, tab, semicolon, or by a space "
    "before a number), tables with a header that has a column such as path and one such as "
    'label, JSON ({"video": "class"}, [{"id": ..., "label": ...}]), and the own files of Kinetics '
    f"and Something-Something{see('docs/evaluate')}"
)
_KINETICS = ("time_start", "time_end")
_HEADER_WORDS = frozenset(
    "video videos clip file filename path name id label labels class action activity category type "
    "target index idx".split()
)
_HMDB_SPLIT = re.compile(r"_test_split\d+\.txt$")
Line = tuple[int, str]


def read_class_pairs(text: str, name: str) -> Iterator[Pair]:
    """The pairs in file order. Raises InputError, with the place, for any other form."""
    if (values := json_lines(text, name)) is not None:
        yield from _entries(values, name)
        return
    if text.lstrip()[:1] in ("{", "["):
        yield from _json(parse_json(text, name, FORMS), name)
        return
    if text.count("\n") > MAX_ROWS:
        raise InputError(f"{name} has more than {MAX_ROWS} lines")
    lines = list(lines_of(text))
    if not lines:
        return
    known = {*VIDEOS, *CLASSES, *_KINETICS}
    found = header_of(text, known)
    # A name of a video or class may be such a word too, but no number stands in a header.
    if found is not None and len(found[1]) > 1 and not any(c.isdigit() for c in found[1]):
        yield from _table(text, name, known)
    else:
        yield from _list(lines, name)


def _table(text: str, name: str, known: set[str]) -> Iterator[Pair]:
    table = read_table(text, name, known)
    assert table is not None
    header = table.header
    video, label = table.column(VIDEOS), table.column(CLASSES)
    if video is None or label is None:
        raise InputError(
            f"{name}: the header {','.join(header)[:200]!r} has no column for the "
            f"{'video' if video is None else 'class'}{FORMS}"
        )
    times = [header.index(t) for t in _KINETICS if t in header]
    is_kinetics = header[video] == "youtube_id" and len(times) == 2
    if TIMES & set(header) and not is_kinetics:
        raise of_parts(name, "line 1")
    tell_splits(table.as_dicts(SPLITS), name)
    kind = table.column((CATEGORY,))
    for line, row in zip(table.lines, table.rows, strict=True):
        place = f"line {line}"
        if is_kinetics:
            start, end = (row[t] for t in times)
            yield Pair(_clip(row[video], start, end, f"{name}, {place}"), row[label], place)
        else:
            category = "" if kind is None or kind == label else row[kind]
            yield Pair(row[video], _template(header[label], row[label]), place, category[:60])


def _json(value: Any, name: str) -> Iterator[Pair]:
    if isinstance(value, dict) and value.keys() & set(VIDEOS) and value.keys() & set(CLASSES):
        value = [value]
    tell_splits(value.values() if isinstance(value, dict) else value, name)
    if isinstance(value, list):
        yield from _entries(((v, f"entry {i}") for i, v in enumerate(value, 1)), name)
        return
    for video, given in value.items() if isinstance(value, dict) else ():
        place = f"video {video[:60]}"
        if isinstance(given, dict) and isinstance(given.get("annotations"), dict):  # Kinetics
            own = given["annotations"]
            times, label = own.get("segment"), own.get("label")
            if not isinstance(times, list) or len(times) != 2:
                raise InputError(f"{name}, {place}: no segment of two times{FORMS}")
            start, end = map(str, times)
            clip = _clip(video, start, end, f"{name}, {place}")
            yield Pair(clip, _word(label, name, place), place)
        else:
            yield Pair(video, _word(given, name, place), place)


def _entries(values: Iterable[tuple[Any, str]], name: str) -> Iterator[Pair]:
    """Objects with a key for the video and one for its class."""
    for entry, place in values:
        own = entry if isinstance(entry, dict) else {}
        video = next((k for k in VIDEOS if k in own), None)
        label = next((k for k in ("template", *CLASSES) if k in own), None)
        if video is None or label is None:
            raise InputError(f"{name}, {place}: needs a video and a class{FORMS}")
        if own.keys() & TIMES:
            raise of_parts(name, place)
        words = _word(own[label], name, place)
        category = category_of(own) if label != CATEGORY else ""
        yield Pair(_word(own[video], name, place), _template(label, words), place, category)


def _clip(video: str, start: str, end: str, where: str) -> str:
    """The name that Kinetics' downloaders give a clip: ID_000010_000020."""
    try:
        return f"{video}_{int(float(start)):06d}_{int(float(end)):06d}"
    except (ValueError, OverflowError):
        raise InputError(f"{where}: {video[:60]} has times that are not numbers") from None


def _template(key: str, text: str) -> str:
    """Something-Something's templates hold their placeholders in brackets: the class has none."""
    return re.sub(r"[\[\]]", "", text) if key == "template" else text


def _word(value: Any, name: str, place: str) -> str:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise InputError(
            f"{name}, {place}: {str(value)[:60]!r} is neither a video nor a class{FORMS}"
        )
    return str(value)


def _list(lines: Sequence[Line], name: str) -> Iterator[Pair]:
    """Lines of a video and its class without a header; all separated alike."""
    delimiter = _delimiter(lines, name)
    if _HMDB_SPLIT.search(name) and {x.split()[-1] for _, x in lines} <= {"0", "1", "2"}:
        raise InputError(
            f"{name}: the numbers in HMDB51's own split files say test (2), training (1) or "
            "neither (0), not the class; give lines of a video and its class"
        )
    for number, line in lines:
        place = f"line {number}"
        if delimiter == " ":
            video, _, label = line.strip().rpartition(" ")
            video = video.strip().strip('"')
        else:
            video, label = _two(line, delimiter)
        yield Pair(video, label, place)


def _delimiter(lines: Sequence[Line], name: str) -> str:
    """What separates a video from its class in all lines. Raises InputError where that is open."""
    ends = {}
    for delimiter in (*DELIMITERS, " "):
        parts = [line.strip().rpartition(delimiter) for _, line in lines]
        if all(found for _, found, _ in parts):
            ends[delimiter] = [label.strip().strip('"') for _, _, label in parts]
    for delimiter, labels in ends.items():
        if all(map(_is_number, labels)):
            _check_one_number(lines, delimiter, name)
            return delimiter
    for labels in ends.values():
        if len(labels) > 1 and all(map(_is_number, labels[1:])):
            _refuse_header(lines[0], name)  # the only line that does not end with a number
    named = [d for d in DELIMITERS if d in ends and all(_is_pair(x, d) for _, x in lines)]
    if len(named) > 1:
        raise InputError(
            f"{name}: video and class could be separated by {DELIMITERS[named[0]]} or "
            f"{DELIMITERS[named[1]]}; put quotes around the names"
        )
    if named:
        _check_no_header(lines, named[0], name)
        return named[0]
    if others := [d for d in DELIMITERS if d in ends]:
        number, line = next((n, x) for n, x in lines if not _is_pair(x, others[0]))
        raise InputError(
            f"{name}, line {number}: {line.strip()[:60]!r} is not a video and a class separated by "
            f"{DELIMITERS[others[0]]}; a name with one inside needs quotes"
        )
    for number, line in lines:
        count = line.strip().count(" ")
        if " " in ends and count > 1:
            raise InputError(
                f"{name}, line {number}: a video and a class with spaces in them cannot be told "
                "apart: separate them with a tab or a comma"
            )
        if " " not in ends and count == 0:
            raise InputError(
                f"{name}, line {number}: {line.strip()[:60]!r} needs a video and a class, "
                f"separated as in the other lines{FORMS}"
            )
    if " " not in ends:
        raise InputError(f"{name}: no separator is in every line{FORMS}")
    _check_no_header(lines, " ", name)
    return " "


def _is_pair(line: str, delimiter: str) -> bool:
    try:
        return len(next(csv.reader([line.strip()], delimiter=delimiter, strict=True))) == 2
    except csv.Error:
        return False


def _check_one_number(lines: Sequence[Line], delimiter: str, name: str) -> None:
    """Refuse lists with several classes a video, and those of folders with frames."""
    for number, line in lines:
        rest = line.strip().rpartition(delimiter)[0].strip()
        if delimiter in rest and _is_number(rest.rpartition(delimiter)[2].strip()):
            folders = all(len(x.split(delimiter)) == 3 for _, x in lines) and not any(
                x.split(delimiter)[0].strip().lower().endswith(SUFFIXES) for _, x in lines
            )
            what = (
                "a list of folders with frames (folder, number of frames, class), not of videos"
                if folders
                else "a list with several classes a video; one class a video is evaluated"
            )
            raise InputError(f"{name}, line {number}: {line.strip()[:60]!r}: {what}")


def _check_no_header(lines: Sequence[Line], delimiter: str, name: str) -> None:
    """Refuse a header of unknown words: words of headers, or a first video alone without suffix."""
    firsts = (next(csv.reader([line.strip()], delimiter=delimiter)) for _, line in lines)
    head, *others = (tuple(cell.lower() for cell in cells) for cells in firsts)
    words = [set(re.split(r"[\W_]+", cell)) for cell in head]
    if all(cell & _HEADER_WORDS for cell in words):
        _refuse_header(lines[0], name)
    if others and not head[0].endswith(SUFFIXES) and all(c[0].endswith(SUFFIXES) for c in others):
        _refuse_header(lines[0], name)
    videos = sum(cell[-1].endswith(SUFFIXES) for cell in (head, *others))
    if videos > len(lines) / 2:
        raise InputError(f"{name}: the video comes first in each line, and its class behind it")


def _refuse_header(line: Line, name: str) -> None:
    raise InputError(
        f"{name}, line {line[0]}: {line[1].strip()[:100]!r} looks like a header without a known "
        f"column; known are {', '.join(VIDEOS[:8])}, ... for the video and "
        f"{', '.join(CLASSES[:5])}, ... for the class"
    )


def _two(line: str, delimiter: str) -> tuple[str, str]:
    """The cells of a line that `_delimiter` has looked at."""
    cells = next(csv.reader([line.strip()], delimiter=delimiter))
    return delimiter.join(cells[:-1]), cells[-1]  # an unquoted name may hold one before a number


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
