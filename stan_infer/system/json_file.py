"""Read JSON from strangers: bounded, decoded, and checked against a type, once.

What passes can be used as its type says: numbers are finite, no key occurs twice in an object,
nothing lies deeper than MAX_DEPTH, and every text can be written as UTF-8.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from stan_infer.errors import InputError, printable, storable
from stan_infer.system.outside_file import read_bounded

MAX_DEPTH = 32  # lists and objects inside each other; our own files have 6
MAX_DIGITS = 40  # of a whole number
MAX_CONTAINERS = 2_000_000  # lists and objects; MSR-VTT's annotations have 210,000

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# msgspec keeps what it learns of a type on the type, half filled while it learns; another thread
# that meets it then ends the process with a segmentation fault (seen with 0.22).
_ONE_AT_A_TIME = threading.Lock()
T = TypeVar("T")


def read_object(path: Path, limit: int, hint: str = "") -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes.

    Raises InputError, which ends with `hint`, for a larger file or one that holds something else.
    """
    values = parse_json(read_bounded(path, limit, hint=hint), str(path), hint)
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object{hint}")
    return values


def parse_json(data: bytes | str, name: str, hint: str = "") -> Any:
    """Decode JSON; what it holds is safe to use.

    Raises InputError, which starts with `name`, for anything that is not JSON, and for NaN, numbers
    beyond a float's range, a key that occurs twice, deep nesting and half a surrogate pair.
    """
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise InputError(f"{name} has more than {MAX_CONTAINERS} lists and objects{hint}")
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_float,
            parse_int=_int,
            parse_constant=_constant,
        )
        _check_depth(value)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as e:
        reason = "nested too deeply" if isinstance(e, RecursionError) else printable(str(e))[:160]
        raise InputError(f"{name} is not JSON that can be used: {reason}{hint}") from e
    return value


def checked(value: Any, kind: type[T], name: str, hint: str = "") -> T:
    """Return a decoded value as `kind`, a type of msgspec's, which may bound its numbers.

    Objects may have further keys. Raises InputError with `name`, the key and what is wrong there.
    """
    import msgspec

    try:
        with _ONE_AT_A_TIME:
            msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as e:
        what, _, where = printable(str(e))[:160].partition(" - at ")
        at = where.strip("`").removeprefix("$").removeprefix(".")
        raise InputError(f"{name} is malformed: {at + ': ' if at else ''}{what}{hint}") from e
    return value


def json_line(value: Any) -> str:
    """Write a value as one line of JSON in ASCII, which has no control characters.

    NaN and infinity become null, arrays lists, and other objects the text of `str`.
    """
    return json.dumps(plain(value), allow_nan=False)


def plain(value: Any) -> Any:
    """The value as JSON types, as json_line writes them."""
    if isinstance(value, Mapping):
        return {storable(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (int, float, bool, type(None))):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return storable(str(value))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return found


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the number {text[:20]}... has {len(text)} digits")
    return int(text)


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number in JSON")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels are nested")
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        depth += 1
