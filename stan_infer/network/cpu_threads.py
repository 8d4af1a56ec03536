"""How many threads of the CPU the network takes, in torch or where clips run side by side."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from stan_infer.network.folded import VideoWeights, linears
from stan_infer.system.machine import usable_cpus

if TYPE_CHECKING:
    from torch import Tensor

X = TypeVar("X")
Y = TypeVar("Y")

SMALL = 2e8  # operations of one product, which one thread computes in about 2 ms


@contextmanager
def threads_for(w: VideoWeights, rows: int) -> Iterator[None]:
    """One thread of the CPU where all products of the linears are small; else torch's own number.

    rows: of a linear's input. The threads of a product that takes microseconds wait for each other
    after it. Where another process has one of their cores, that takes longer than the product.
    """
    with _threads(1) if is_small(w, rows) else nullcontext():
        yield


def is_small(w: VideoWeights, rows: int) -> bool:
    """Whether all products of the linears, with so many rows of input, are small."""
    return 2 * rows * max(math.prod(one.weight.shape) for one in linears(w).values()) < SMALL


def side_by_side(run: Callable[[X], Y], items: Iterable[X]) -> Generator[tuple[X, Y], None, None]:
    """Yield (item, run(item)) in order; as many items run at a time as there are CPUs.

    Each has one thread. That needs less time than all threads for one clip after the other, which
    wait for each other after every product. Items are taken as they are needed, one ahead. Close
    the generator where it is not read to its end: until then the caller has one thread, too.
    """
    count = usable_cpus()
    waiting: deque[tuple[X, Future[Y]]] = deque()
    # The pool's threads begin within the block, and take over its number of threads.
    with _threads(1), ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(run, item)))
                if len(waiting) > count:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give torch so many threads; nothing where it was not imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_of(w: VideoWeights, video: Tensor) -> int:
    """How many rows the linears' inputs have for clips [B, T, ...]."""
    return video.shape[0] * video.shape[1] * (len(w.patches.table) + 1)
