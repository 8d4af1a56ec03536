"""A library's vectors in 8 bits: a search reads these first, a quarter of the bytes.

They are made of the vectors alone: int8 [E], where E is the width, of a vector after `turned`,
divided by a fixed step and rounded. How far they can be from the vector is known, so there is a
bound above its product with a text, and a vector whose bound is too low for a hit need not be read.
What is found is therefore the same as without them.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import CheckError, MissingError
from stan_infer.library.blocks import gathered, in_blocks
from stan_infer.system.packages import require
from stan_infer.system.result import Say, silent

CODES = "vectors.i8"
FEWEST = 65_536  # rows from which a search reads them: all of so many vectors take 10 ms
_BLOCK = 32_768  # vectors that a thread looks at at once

# After the turn the numbers of a vector of length 1 lie as those of a normal distribution of
# deviation 1 / sqrt(E), so that in a million vectors some hundred have one beyond the largest code.
_LARGEST = 127
_DEVIATIONS = 5.0
_ERROR = 0.5001 * _DEVIATIONS / _LARGEST  # length of what rounding takes away: half of each step
_UNKNOWN = -128  # every code of a vector with a larger number
_LENGTH = 1.001  # that a vector may have
_ROUNDING = 1e-4  # of sums in float32, of vectors of length 1


def encoded(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    """Vectors [n, E] -> their codes, int8 [n, E]; the same in whatever company, on any machine."""
    with np.errstate(all="ignore"):  # of vectors that a stranger changed
        rounded = np.rint(turned(vectors) / _step(vectors.shape[1]))
        far = ~(np.abs(rounded).max(1) <= _LARGEST)
    rounded[far] = _UNKNOWN
    return rounded.astype(np.int8)


def _step(width: int) -> np.float32:
    return np.float32(_DEVIATIONS / _LARGEST / math.sqrt(width))


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


def read_first(
    codes: NDArray[np.int8] | None, rows: int, say: Say = silent
) -> NDArray[np.int8] | None:
    """The codes, if searches of so many rows are to read them; else say why not."""
    if rows < FEWEST:
        return None
    slow = f"note: a search reads all 32 bits of {rows} rows; with 8 bits of them it finds the same"
    if codes is None:
        say(f"{slow} sooner: the next run of embed into the library, or of migrate, makes them")
        return None
    try:
        require("numkong", "that", "search")
    except MissingError as e:  # it was not asked for, and nothing else is found without it
        say(f"{slow} sooner; {e}")
        return None
    return codes


def changed_codes(codes: NDArray[np.int8]) -> CheckError:
    """What to raise for codes that are of other vectors."""
    return CheckError(
        f"{getattr(codes, 'filename', None) or CODES} is not of these vectors: delete it, and the "
        "next run of embed or migrate makes it again"
    )


def bounds(
    codes: NDArray[np.int8], query: NDArray[np.float64], ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What the products of the vectors `ids` [n] with the query [E] are at most -> float32 [n].

    -inf where that is not known. `ids` rise. codes: [R, E] of all of them. Needs the package
    numkong, whose products of 8 bits are exact.
    """
    numkong = require("numkong", "searching in 8 bits", "search")
    length = float(np.linalg.norm(query))
    exact = turned((query / length).astype(np.float32)[None])[0]
    step = np.abs(exact).max() / _LARGEST
    own = np.rint(exact / step)
    own_error = float(np.linalg.norm(exact - own * step))
    more = length * (_ERROR + own_error * (_LENGTH + _ERROR) + _ROUNDING)
    factor = length * float(step) * float(_step(len(query)))
    unknown = _UNKNOWN * own.sum()  # and of some others by chance
    asked = own.astype(np.int8)[None]
    found, everything = gathered(len(codes), ids)

    def look_at(part: slice) -> None:
        sums: Any = np.asarray(
            numkong.cdist(asked, codes[part if everything else ids[part]], "dot")
        )
        most = found[part]
        np.multiply(sums[0], factor, out=most, casting="unsafe")
        most += np.float32(more)
        most[sums[0] == unknown] = -np.inf

    in_blocks(look_at, len(found), _BLOCK)
    return found[ids] if everything and len(ids) < len(found) else found
