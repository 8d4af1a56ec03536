"""Work on many rows, by threads that take a block each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from stan_infer.system.machine import usable_cpus

_MOST_THREADS = 8  # reading memory limits all of them; more than two were not measured
_FEW = 8  # one in so many rows is copied about as fast as all are read


def in_blocks(work: Callable[[slice], None], count: int, size: int) -> None:
    """Call `work` for every block of `size` rows, of `count`."""
    blocks: SimpleQueue[slice] = SimpleQueue()
    for first in range(0, count, size):
        blocks.put(slice(first, min(first + size, count)))
    threads = min(usable_cpus(), _MOST_THREADS, blocks.qsize())

    def take() -> None:
        with suppress(Empty):
            while True:
                work(blocks.get_nowait())

    if threads < 2:
        take()
        return
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(take) for _ in range(threads - 1)]
        # This thread works, too: had it waited, it might wake on the core of another thread, and
        # the network that embeds the next text would share one core: 30 ms for 17 in ONNX Runtime.
        take()
        for other in others:
            other.result()


def gathered(count: int, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], bool]:
    """Room for a number of each row `ids` [n]; or of all `count` rows, where most are asked for."""
    everything = len(ids) * _FEW > count
    return np.empty(count if everything else len(ids), np.float32), everything
