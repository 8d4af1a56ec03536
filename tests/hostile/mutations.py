"""Damage to files, the same for the same random generator: bytes, values of JSON, lines of text."""

import json
import random
import re
from typing import Any

# Text that no writer of JSON gives, put in after the rest was written.
RAW = ("1e999", "-1e999", "NaN", "Infinity", "1" + "0" * 400, "1" + "0" * 5000, "-0", "1E400")
RAW_MARK = "raw text "
STRINGS = (
    "", " ", "x", "0", "-1", "fp32", "int8", "video", "text", "../../etc/passwd", "/etc/hostname",
    "a\0b", "\ud800", "\x1b[2J", "a\nb", "video.onnx", "video.onnx.data", "model.onnx", "\u202e",
    "labels.npz", "golden.npz", "tokenizer.json", "x" * 300, "x" * 70_000, "1" * 5000, "sm_89",
    "sm_\u0663", "VERSION_COMPATIBLE", "AMPERE_PLUS", "2.0", "1.9", "nan", "|", "<b>",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 64, 65, 255, 4096, 65536, 2**24, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30,
    10**400, -(10**400), 0.0, -0.5, 0.5, 1e-300, 1e300, 1.0, 2.0, 1e9,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [{}], [None], {"a": 1}, [1, 2], [0, 0])
LONGEST = 300_000  # bytes of a line, beyond which it is not damaged further
SNIPPETS = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"'", b",", b";", b"\t", b"\n", b"\r",
    b"{", b"}", b"[", b"]", b":", b"\\", b"\\ud800", b"1e999", b"NaN", b"null", b"-", b"9" * 400,
    b"[" * 5000, b'{"a":' * 2000, b'"a":1,"a":2', b" " * 3000, b"_" * 3000, b"\xc2\x85", b"\x1b[2J",
)  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, take out, double or put in a few bytes; or cut the rest off."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 16, 64, 512))
        kind = rng.randrange(6)
        if kind == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + length :]
        elif kind == 2:
            data = data[:at] + rng.choice(SNIPPETS) + data[at:]
        elif kind == 3:
            start = rng.randrange(len(data) + 1)
            data = data[:at] + data[start : start + length] + data[at:]
        elif kind == 4 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif rng.random() < 0.3:
            data = data[:at]
    return data


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Change values of a JSON document: types, sizes, missing and doubled keys, nesting."""
    value, text = json.loads(data), data.decode()
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 6))):
        value = _damage_value(value, rng)
        try:
            text = json.dumps(value)
        except RecursionError:  # nested deeper than it can be written: what was before will do
            break
        if len(text) > 10 * LONGEST:
            break
    text = re.sub(rf'"{RAW_MARK}(\d+)"', lambda m: RAW[int(m[1]) % len(RAW)], text)
    if rng.random() < 0.05:  # a key twice
        keys = re.findall(r'"\w+": ', text)
        if keys:
            key = rng.choice(keys)
            text = text.replace(key, f"{key}{rng.choice(('1', 'null', '[]', '{}'))}, {key}", 1)
    return text.encode()


def damage_lines(data: bytes, rng: random.Random) -> bytes:
    """Change lines of text: order, cells, separators, blanks, quotes."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        i, kind = rng.randrange(len(lines)), rng.randrange(8)
        line = lines[i]
        if len(line) > LONGEST:
            break
        if kind == 0:
            lines[i : i + 1] = []
            lines = lines or [b""]
        elif kind == 1:
            lines.insert(rng.randrange(len(lines) + 1), line)
        elif kind == 2:
            lines[i] = line.replace(rng.choice(b",;\t _").to_bytes(), rng.choice(SNIPPETS))
        elif kind == 3:
            cells = line.split(b",")
            cells[rng.randrange(len(cells))] = rng.choice(STRINGS).encode("utf-8", "surrogatepass")
            lines[i] = b",".join(cells)
        elif kind == 4:
            lines[i] = (line * rng.choice((2, 50, 500)))[:LONGEST]
        elif kind == 5:
            lines[i] = b" " * rng.choice((1, 200_000)) + line + b" \t" * rng.choice((1, 100_000))
        elif kind == 6:
            lines[i] = rng.choice((b"_1", b"_", b"1_", b"a,", b'"', b"\t")) * 50_000
        else:
            lines.insert(i, rng.choice(SNIPPETS))
    return b"\n".join(lines)


def _damage_value(root: Any, rng: random.Random) -> Any:
    """Change one value, anywhere in the document."""
    places: list[tuple[Any, Any]] = []
    stack = [root] if isinstance(root, (dict, list)) else []
    while stack:
        value = stack.pop()
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in inside:
            places.append((value, key))
            if isinstance(child, (dict, list)):
                stack.append(child)
    if not places or rng.random() < 0.01:
        return _odd(root, rng)
    parent, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice((*STRINGS, f"{key}x"))] = parent.pop(key)
    elif kind == 2:
        other, name = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[name])) if _has(other, name) else None
    elif kind == 3:
        depth, wrapped = rng.choice((1, 2, 60, 400)), parent[key]
        for _ in range(depth):
            wrapped = [wrapped] if rng.random() < 0.5 else {"a": wrapped}
        parent[key] = wrapped
    elif kind == 4 and isinstance(parent, list):
        parent.extend([parent[key]] * rng.choice((1, 5, 2000)))
    else:
        parent[key] = _odd(parent[key], rng)
    return root


def _has(parent: Any, key: Any) -> bool:
    return key in parent if isinstance(parent, dict) else key < len(parent)


def _odd(value: Any, rng: random.Random) -> Any:
    kind = rng.randrange(7)
    if kind == 0:
        return f"{RAW_MARK}{rng.randrange(len(RAW))}"
    if kind == 1:
        return rng.choice(STRINGS)
    if kind == 2:
        return json.loads(json.dumps(rng.choice(OTHERS)))
    if kind == 3 and isinstance(value, (int, float)):
        return value * rng.choice((-1, 0, 2, 1000))
    if kind == 4 and isinstance(value, str):
        return value + rng.choice(STRINGS)
    if kind == 5:
        return [value, value]
    return rng.choice(NUMBERS)
