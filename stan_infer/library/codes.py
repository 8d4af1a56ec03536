"""A library's vectors in 8 bits: a search reads these first, a quarter of the bytes.

They are made of the vectors alone. Each says how far it is from its vector, so a product has a
bound above it; where the bound is too low for a hit, the vector itself need not be read. What is
found is therefore the same as without them.

A record is int8 [E], the codes; float32, their scale; float32, their error. E is the width. The
codes times the scale are the vector after `turned`, but for a rest of that length.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import CheckError
from stan_infer.library.blocks import gathered, in_blocks
from stan_infer.system.packages import install_command, is_installed, require
from stan_infer.system.result import Say

CODES = "vectors.i8"
FEWEST = 65_536  # rows from which a search reads them: all of so many vectors take 10 ms
_ENDS = 8  # bytes of a record behind its codes
_BLOCK = 16_384  # records that a thread looks at at once
_LENGTH = 1.001  # that a vector may have
_ROUNDING = 1e-5  # of sums in float32, of vectors of length 1


def record_bytes(width: int) -> int:
    """Bytes of one record."""
    return width + _ENDS


def encoded(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Vectors [n, E] -> their records, uint8 [n, E + 8]; the same bytes in whatever company."""
    records = np.empty((len(vectors), record_bytes(vectors.shape[1])), np.uint8)
    codes, ends = _parts(records)
    with np.errstate(all="ignore"):  # of vectors that a stranger changed
        exact = turned(vectors)
        scale = np.maximum(np.abs(exact).max(1), np.float32(1e-30)) / np.float32(127)
        rounded = np.rint(exact / scale[:, None])
        codes[:] = rounded.astype(np.int8)
        rest = exact - rounded * scale[:, None]
        ends[:, 0] = scale
        ends[:, 1] = np.sqrt((rest * rest).sum(1))
    return records


def turned(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors [n, E] after a fixed turn, which keeps products and spreads what is large.

    Vectors of CLIP have a few large numbers, beside which the others would round to little. The
    signs of some numbers are changed, and sums and differences taken (Hadamard's matrix), in blocks
    whose sizes are powers of two.
    """
    width = vectors.shape[1]
    bits = hashlib.shake_256(b"signs").digest(-(-width // 8))
    signs = np.unpackbits(np.frombuffer(bits, np.uint8), count=width).astype(np.float32) * 2 - 1
    x = np.array(vectors.T, order="C")
    sizes = [1 << i for i in reversed(range(width.bit_length())) if width >> i & 1]
    for _ in sizes[:2]:  # of several blocks each gets numbers of others in between
        x *= signs[:, None]
        first = 0
        for size in sizes:
            _mix(x[first : first + size])
            first += size
        x = x[::-1].copy() if len(sizes) > 1 else x
    return np.ascontiguousarray(x.T)


def _mix(x: NDArray[np.float32]) -> None:
    """Multiply Hadamard's matrix with x [size, n], in place."""
    size, n = x.shape
    half = 1
    while half < size:
        pairs = x.reshape(size // half // 2, 2, half, n)
        total = pairs[:, 0] + pairs[:, 1]
        pairs[:, 1] = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] = total
        half *= 2
    x *= np.float32(size**-0.5)


def other_codes(vectors: NDArray[np.float32], records: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the records [n, E + 8] are not those of the vectors [n, E] -> bool [n]."""
    (codes, ends), (right, right_ends) = _parts(records), _parts(encoded(vectors))
    same = (codes == right).all(1) & (ends[:, 0] == right_ends[:, 0])
    # NumPy sums in another order on another machine.
    return ~same | ~(np.abs(ends[:, 1] - right_ends[:, 1]) < _ROUNDING)


def read_first(records: NDArray[np.uint8] | None, rows: int, say: Say) -> NDArray[np.uint8] | None:
    """The records, if searches of so many rows are to read them; else say why not."""
    if rows < FEWEST:
        return None
    slow = f"note: a search reads all 32 bits of {rows} rows; with 8 bits of them it finds the same"
    if records is None:
        say(f"{slow} sooner: the next run of embed into the library makes them")
        return None
    if not is_installed("numkong"):
        say(f"{slow} sooner: {install_command('search')}")
        return None
    require("numkong", "searching in 8 bits", "search")
    return records


def changed_codes(library: Path) -> CheckError:
    """What to raise for a library with records that are none."""
    return CheckError(
        f"library {library}: {CODES} was changed after it was written: delete it, and the next run "
        "of embed makes it again"
    )


def bounds(
    records: NDArray[np.uint8], query: NDArray[np.float64], ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What the products of the vectors `ids` [n] with the query [E] are at most -> float32 [n].

    records: [R, E + 8] of all of them. Needs the package numkong, whose products of 8 bits are
    exact.
    """
    numkong = require("numkong", "searching in 8 bits", "search")
    length = float(np.linalg.norm(query))
    own, (own_scale, own_error) = (part[0] for part in _parts(encoded(_unit(query, length))))
    found, everything = gathered(len(records), ids)

    def look_at(part: slice) -> None:
        codes, ends = _parts(records[part] if everything else records[ids[part]])
        with np.errstate(all="ignore"):  # records that a stranger changed: the caller looks
            sums: Any = np.asarray(numkong.cdist(own[None], codes, "dot"))[0]
            scale, error = ends.T
            about = sums * scale * own_scale
            found[part] = length * (about + error + own_error * (_LENGTH + error) + _ROUNDING)

    in_blocks(look_at, len(found), _BLOCK)
    return found[ids] if everything and len(ids) < len(found) else found


def _unit(query: NDArray[np.float64], length: float) -> NDArray[np.float32]:
    return (query / length).astype(np.float32)[None]


def _parts(records: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [n, E], and scale and error [n, 2], of records, where they lie."""
    return records[:, :-_ENDS].view(np.int8), records[:, -_ENDS:].view("<f4")
