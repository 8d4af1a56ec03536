"""Work on many rows, by threads that take a block each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stan_infer.system.machine import usable_cpus

_MOST_THREADS = 8  # reading memory limits all of them; more than two were not measured
_FEW = 8  # one in so many rows is copied about as fast as all are read


def in_blocks(work: Callable[[slice], None], count: int, size: int) -> None:
    """Call `work` for every block of `size` rows, of `count`."""
    blocks = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    threads = min(usable_cpus(), _MOST_THREADS, len(blocks))
    if threads < 2:
        for block in blocks:
            work(block)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, blocks):
                pass


def gathered(count: int, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], bool]:
    """Room for a number of each row `ids` [n]; or of all `count` rows, where most are asked for."""
    everything = len(ids) * _FEW > count
    return np.empty(count if everything else len(ids), np.float32), everything
