"""Class names from a file, in every form in which they lie about, by their numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.system.json_file import parse_json
from stan_infer.system.outside_file import MAX_LINES, read_text
from stan_infer.system.table import header_of, lines_of, read_table

NUMBERS = ("id", "label_id", "class_id", "class_index", "index", "number", "target")
NAMES = ("name", "label", "class", "class_name", "label_name", "category", "action")
# A number and what separates it from the name; anything that looks so but is not is refused.
_NUMBER_FIRST = re.compile(r"([0-9]{1,9})(?:[ \t]*[,;:\t][ \t]*|[ \t]+)(\S.*)")
_NUMBER_LIKE = re.compile(r"[\"']?[0-9]+[\"']?[ \t]*(?:[.,;:=|)\t]|[ \t]|$)")
_MAX_BYTES = 16 * 2**20
_FORMS = (
    "; give one name per line (line 1 is class 0), lines of a number and a name, a table with "
    'the columns id,name, or JSON: ["name", ...] or {"name": number}'
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """Class names by number. numbers: rising; names: in the same order, each once."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]


def read_labels(path: Path, *, split_words: bool = False) -> Labels:
    """Read class names; each keeps the number that the file gives it.

    Of plain lines the number is that of the line, from 0: a blank line is a number without a name.
    Numbers with gaps are told. split_words: write "brush_hair" and "ApplyEyeMakeup" as words.
    Raises InputError for a number or a name that is there twice and for files of another form.
    """
    name = f"labels {path}"
    text = read_text(path, _MAX_BYTES, name=name, hint=_FORMS)
    if text.lstrip()[:1] in ("{", "["):
        pairs = _json(text, name)
    else:
        pairs = _table(text, name) or _lines(text, name)
    if not pairs:
        raise InputError(f"{name} is empty{_FORMS}")
    if len(pairs) > MAX_LINES:
        raise InputError(f"{name} has {len(pairs)} classes; at most {MAX_LINES} are read")
    _check_once(name, "number", (n for n, _ in pairs))
    _check_once(name, "name", (c for _, c in pairs))
    pairs.sort()
    numbers, names = tuple(n for n, _ in pairs), tuple(c for _, c in pairs)
    if numbers != tuple(range(len(numbers))):
        _log.warning(
            "%s: %s; results list the %d names in the order of their numbers, from 0 on",
            name, _gaps(numbers), len(names),
        )  # fmt: skip
    if split_words:
        names = _in_words(names, name)
    elif any(words(c) != c for c in names):
        example = next(c for c in names if words(c) != c)
        _log.warning(
            "%s has names like %r, which a text tower reads as odd words; --split-words makes "
            "them %r",
            name, example[:60], words(example)[:60],
        )  # fmt: skip
    return Labels(numbers, names)


def _gaps(numbers: tuple[int, ...]) -> str:
    """Say which numbers from 0 on have no name; numbers: rising, and not 0, 1, 2 ..."""
    gaps = [
        (before + 1, number - 1)
        for before, number in pairwise((-1, *numbers))
        if number > before + 1
    ]
    shown = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in gaps[:3])
    more = f" and {len(gaps) - 3} more gaps" if len(gaps) > 3 else ""
    return f"no name has the number {shown}{more}"


def words(name: str) -> str:
    """ "brush_hair" -> "brush hair", "ApplyEyeMakeup" -> "Apply Eye Makeup"; others unchanged."""
    if "_" in name:
        name = " ".join(name.replace("_", " ").split())
    if " " not in name and re.fullmatch(r"(?:[A-Z][a-z]+){2,}", name):
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return name


def _in_words(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    changed = tuple(map(words, names))
    pairs = [(a, b) for a, b in zip(names, changed, strict=True) if a != b]
    shown = ", ".join(f"{a[:40]!r} as {b[:40]!r}" for a, b in pairs[:2])
    _log.warning("%s: %d of %d names are written as words%s", name, len(pairs), len(names),
                 f": {shown}" if shown else "")  # fmt: skip
    _check_once(f"{name}, as words", "name", changed)
    return changed


def _json(text: str, name: str) -> list[tuple[int, str]]:
    value = parse_json(text, name, _FORMS)
    if isinstance(value, list):
        return [(i, _name(c, name)) for i, c in enumerate(value)]
    if all(_number(key) is not None for key in value):  # {"0": "name"}
        return [(int(key), _name(label, name)) for key, label in value.items()]
    pairs = []
    for label, given in value.items():
        number = _number(given)
        if number is None:
            raise InputError(f"{name}: {label[:60]!r} has no whole number from 0 on{_FORMS}")
        pairs.append((number, _name(label, name)))
    return pairs


def _table(text: str, name: str) -> list[tuple[int, str]]:
    """The columns of a number and a name; [] for a text without such a header."""
    known = {*NUMBERS, *NAMES}
    found = header_of(text, known)
    if found is None or len(found[1]) == 1 and found[1][0] not in NAMES:
        return []
    delimiter, header = found
    is_whole = set(header) & set(NUMBERS) and set(header) & set(NAMES)
    if len(header) > 1 and not is_whole and any(delimiter not in x for _, x in lines_of(text)):
        return []  # a name such as "action, comedy"
    table = read_table(text, name, known)
    assert table is not None
    number, label = table.column(NUMBERS), table.column(NAMES)
    if label is None or (number is None and len(header) > 1):
        raise InputError(
            f"{name}: the header {','.join(header)[:100]!r} needs a column of numbers (such as "
            f"{NUMBERS[0]}) and one of names (such as {NAMES[0]})"
        )
    if number is None:
        _log.warning("%s: its first line, %r, is taken for a header", name, header[0])
        return [(i, _name(row[label], name)) for i, row in enumerate(table.rows)]
    pairs = []
    for line, row in zip(table.lines, table.rows, strict=True):
        value = _number(row[number])
        if value is None:
            raise InputError(
                f"{name}, line {line}: {row[number][:40]!r} is not the number of a class"
            )
        pairs.append((value, _name(row[label], f"{name}, line {line}")))
    return pairs


def _lines(text: str, name: str) -> list[tuple[int, str]]:
    """One name per line; or on every line its number, before it or behind it."""
    if text.count("\n") > 2 * MAX_LINES:
        raise InputError(
            f"{name} has more than {2 * MAX_LINES} lines; at most {MAX_LINES} are read"
        )
    lines = [(n, line.strip()) for n, line in lines_of(text)]
    for split, place in ((_first, "before"), (_last, "behind")):
        pairs = [pair for _, line in lines if (pair := split(line))]
        # Names may hold numbers of their own ("digit 0", "digit 1"): those leave no names apart.
        if not pairs or len(pairs) < len(lines) or len({c for _, c in pairs}) < len(pairs):
            continue
        numbers = sorted(n for n, _ in pairs)
        if numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(pairs))):
            _log.warning("%s: the numbers %s its names are taken for those of classes", name, place)
            return [(n, _clean(c, name)) for n, c in pairs]
    like = sum(bool(_NUMBER_LIKE.match(line)) for _, line in lines)
    if len(lines) > 1 and like > len(lines) / 2:
        raise InputError(
            f"{name}: {like} of {len(lines)} lines begin with a number, but not all with 0 to "
            f"{len(lines) - 1} and one separator; if they are class numbers give a table with the "
            "columns id,name, and if they are part of the names a JSON list of names"
        )
    if lines and lines[0][1].startswith("#"):
        raise InputError(f"{name}: its first line is a comment; names stand on lines of their own")
    return [(number - 1, _clean(line, name)) for number, line in lines]


def _first(line: str) -> tuple[int, str] | None:
    match = _NUMBER_FIRST.fullmatch(line)
    return (int(match[1]), match[2]) if match else None


def _last(line: str) -> tuple[int, str] | None:
    label = line.rstrip("0123456789")
    number, label = line[len(label) :], label
    bare = label.rstrip(" \t").rstrip(",;:\t").rstrip()
    if not 0 < len(number) <= 9 or bare == label or not bare:
        return None
    return int(number), bare


def _clean(name: str, file: str) -> str:
    """A name without quotes around it. Raises InputError where a separator is left at its end."""
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = name[1:-1].replace('""', '"').strip()
    if not name or name[-1] in ",;|" or "\t" in name:
        raise InputError(
            f"{file}: {name[:60]!r} is not the name of a class: a separator is left in it; give a "
            "table with the columns id,name"
        )
    return name


def _name(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name}: {str(value)[:60]!r} is not the name of a class{_FORMS}")
    return value.strip()


def _number(value: object) -> int | None:
    text = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text.strip()) else None


def _check_once(name: str, what: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{name}: the {what} {str(value)[:60]!r} is there twice")
        seen.add(value)
