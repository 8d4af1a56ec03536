"""Annotation files with texts -> (video, text) pairs, whichever form they have.

A form is known by its content, so every data set is read in every form that it is published in. A
pickle is read by the inert reader of checkpoints and may hold plain values only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stan_infer.errors import InputError, see
from stan_infer.evaluation.task import SPLITS, Pair, tell_splits
from stan_infer.system.json_file import parse_json
from stan_infer.system.table import MAX_ROWS, lines_of, read_table

# Of several columns or keys the first of these counts.
VIDEOS = tuple(
    "clip_path video_path path filepath file_path clip_id video_id video videoid video_name clip "
    "clip_name filename file_name file vid youtube_id name id".split()
)
MAX_WORDS, MAX_WORD = 5_000_000, 4096  # of a pickle; MSVD has 600,000 words
# Where a file has these, its rows describe parts of a video.
TIMES = frozenset("start end start_time end_time time_start time_end start_sec end_sec".split())
TEXTS = tuple("sentence caption text description query sentences captions texts desc".split())
CATEGORY = "category"  # key or column: what kind of video it is
_CATEGORY_LENGTH = 60
FORMS = (
    "; read are tables (comma, tab or semicolon) with a header that has a column such as video_id "
    'and one such as sentence, JSON ({"video": "text"}, {"video": ["text", ...]}, '
    '{"video": {"sentences": [...]}}, [{"video": ..., "caption": ...}] or such objects by line), '
    f"and the own files of MSR-VTT, MSVD and LSMDC{see('docs/evaluate')}"
)


def read_pairs(text: str, name: str) -> list[Pair]:
    """The pairs in file order. Raises InputError, with the place, for any other form."""
    begin = text.lstrip()[:1]
    if (values := json_lines(text, name)) is not None:
        pairs = _entries(values, name)
    elif begin in ("{", "["):
        pairs = _pairs_of(parse_json(text, name, FORMS), name)
    else:
        pairs = _text_pairs(text, name)
    found = []
    for pair in pairs:
        found.append(pair)
        if len(found) > MAX_ROWS:
            raise InputError(f"{name} has more than {MAX_ROWS} texts")
    return found


def pickled_pairs(value: object, name: str) -> Iterator[Pair]:
    """The pairs of MSVD's raw-captions.pkl, as the inert reader gives it: {video: [[word, ...]]}.

    Raises InputError for other values: a few bytes of a pickle can stand for very many.
    """
    if not isinstance(value, dict):
        raise InputError(f"{name} is a pickle without a dict of videos{FORMS}")
    budget = MAX_WORDS
    for video, captions in value.items():
        place = f"video {str(video)[:60]}"
        for caption in captions if isinstance(captions, list | tuple) else [captions]:
            words = caption if isinstance(caption, list | tuple) else [caption]
            budget -= len(words) + 1
            if budget < 0 or not all(isinstance(w, str) and len(w) <= MAX_WORD for w in words):
                raise InputError(
                    f"{name}, {place}: captions are lists of words, {MAX_WORDS} in all; this is "
                    "something else"
                )
            yield Pair(str(video), " ".join(words), place)


def _pairs_of(value: Any, name: str) -> Iterator[Pair]:
    """The pairs of decoded JSON."""
    if isinstance(value, list):
        tell_splits(value, name)
        yield from _entries(((v, f"entry {i}") for i, v in enumerate(value, 1)), name)
    elif isinstance(value, dict) and isinstance(value.get("sentences"), list):  # MSR-VTT
        videos = value["videos"] if isinstance(value.get("videos"), list) else []
        tell_splits(videos, name)
        known = {str(v.get("video_id")): category_of(v) for v in videos if isinstance(v, dict)}
        sentences = ((v, f"sentence {i}") for i, v in enumerate(value["sentences"], 1))
        for pair in _entries(sentences, name):
            yield pair._replace(category=known.get(pair.video, ""))
    elif isinstance(value, dict) and value.keys() & set(VIDEOS) and value.keys() & set(TEXTS):
        yield from _entries(iter([(value, "entry 1")]), name)
    elif isinstance(value, dict):
        for video, given in value.items():
            yield from _texts(str(video), given, name)
    else:
        raise InputError(f"{name} holds no texts of videos{FORMS}")


def _texts(video: str, given: Any, name: str) -> Iterator[Pair]:
    """What an object keyed by videos gives for one of them."""
    place = f"video {video[:60]}"
    if isinstance(given, dict):
        key = next((k for k in TEXTS if k in given), None)
        if key is None:
            raise InputError(f"{name}, {place}: no text ({', '.join(TEXTS[:5])}, ...){FORMS}")
        given = _whole(key, given[key], name, place)
    for part in given if isinstance(given, list) else [given]:
        yield Pair(video, _words(part, name, place), place)


def _whole(key: str, given: Any, name: str, place: str) -> Any:
    """ActivityNet's sentences of a video are one paragraph; other texts stay as they are."""
    if key != "sentences" or not isinstance(given, list):
        return given
    return " ".join(_words(part, name, place).strip() for part in given)


def _entries(values: Iterator[tuple[Any, str]], name: str) -> Iterator[Pair]:
    """Objects with a key for the video and one for its text, or several."""
    for value, place in values:
        video = next((k for k in VIDEOS if isinstance(value, dict) and k in value), None)
        text = next((k for k in TEXTS if isinstance(value, dict) and k in value), None)
        if video is None or text is None:
            what = ", ".join(map(str, value))[:80] if isinstance(value, dict) else str(value)[:80]
            raise InputError(
                f"{name}, {place}: needs a video ({', '.join(VIDEOS[4:8])}, ...) and a text "
                f"({', '.join(TEXTS[:4])}, ...), has {what!r}{FORMS}"
            )
        if not isinstance(value[video], (str, int)):
            raise InputError(f"{name}, {place}: {video} is not the name of a video")
        if value.keys() & TIMES:
            raise of_parts(name, place)
        given = _whole(text, value[text], name, place)
        for part in given if isinstance(given, list) else [given]:
            words = str(part) if isinstance(part, int) else _words(part, name, place)
            yield Pair(str(value[video]), words, place, category_of(value))


def category_of(entry: Mapping[str, Any]) -> str:
    """The category that an object of a file gives its video, or ""."""
    given = entry.get(CATEGORY, "")
    return str(given)[:_CATEGORY_LENGTH] if isinstance(given, (str, int)) else ""


def _words(value: Any, name: str, place: str) -> str:
    """A text; a list of words is one."""
    if isinstance(value, list) and value and all(isinstance(w, str) for w in value):
        return " ".join(value)
    if isinstance(value, str):
        return value
    raise InputError(f"{name}, {place}: {str(value)[:60]!r} is not a text{FORMS}")


def json_lines(text: str, name: str) -> Iterator[tuple[Any, str]] | None:
    """The values of a text of one JSON object per line, and their places; None for another."""
    lines = lines_of(text)
    first, second = next(lines, None), next(lines, None)
    if first is None or second is None or not first[1].lstrip().startswith("{"):
        return None
    if not (first[1].rstrip().endswith("}") and second[1].lstrip().startswith("{")):
        return None
    return ((parse_json(line, f"{name}, line {n}"), f"line {n}") for n, line in lines_of(text))


def of_parts(name: str, place: str) -> InputError:
    """The error for a file that describes parts of videos, whose files it does not name."""
    return InputError(
        f"{name}, {place}: its rows have times, so they describe parts of videos; whole videos are "
        "evaluated: cut the clips, and give the file of each"
    )


def _text_pairs(text: str, name: str) -> Iterator[Pair]:
    table = read_table(text, name, {*VIDEOS, *TEXTS})
    if table is not None:
        video, sentence = table.column(VIDEOS), table.column(TEXTS)
        if video is None or sentence is None:
            raise InputError(
                f"{name}: the header {','.join(table.header)[:200]!r} needs a column for the "
                f"{'video' if video is None else 'text'}{FORMS}"
            )
        if TIMES & set(table.header):
            raise of_parts(name, "line 1")
        tell_splits(table.as_dicts(SPLITS), name)
        kind = table.column((CATEGORY,))
        for number, row in zip(table.lines, table.rows, strict=True):
            category = "" if kind is None else row[kind][:_CATEGORY_LENGTH]
            yield Pair(row[video], row[sentence], f"line {number}", category)
        return
    lines = list(lines_of(text))
    if lines and lines[0][1].count("\t") >= 5:  # LSMDC: clip, four times, sentence
        for number, line in lines:
            cells = line.split("\t")
            if len(cells) != 6 or not all(re.fullmatch(r"[\d:.,]+", c.strip()) for c in cells[1:5]):
                raise InputError(
                    f"{name}, line {number}: {len(cells)} cells; lines of LSMDC have a clip, four "
                    f"times and a sentence{FORMS}"
                )
            yield Pair(cells[0], cells[5], f"line {number}")
        return
    for number, line in lines:  # MSVD: VIDEO_START_END a sentence
        if line.startswith("#"):
            continue
        clip, _, words = line.strip().partition(" ")
        if not re.fullmatch(r".+_\d+_\d+", clip):
            raise InputError(
                f"{name}, line {number}: {line.strip()[:60]!r} is of no known form{FORMS}"
            )
        yield Pair(clip, words, f"line {number}")
