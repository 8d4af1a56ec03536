"""Many clips, decoded in several processes at a time and yielded in order."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from stan_infer.errors import InputError, StanError
from stan_infer.video.clip import Clip
from stan_infer.video.decode_worker import DecodeWorker, check_reading, default_workers
from stan_infer.video.grid import FramesRead, GridPlan
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Plan, Window, Windows
from stan_infer.video.worker_pool import MEASURED, Pool, Work, do_twice

PREFETCH = 2  # clips per worker that are being decoded or wait to be taken, at least
MOST_AHEAD, AHEAD_BYTES = 8, 2**23  # the same of small clips
SPARE = 1.25  # of what enough_workers needs at least
EARLY_BYTES = 2**25  # of pixels that early_clips decodes before they are asked for

Result: TypeAlias = Clip | StanError


@contextmanager
def early_clips(
    paths: Sequence[Path], spec: ClipSpec, *, workers: int | None = None, timeout_s: float = 60.0
) -> Iterator[None]:
    """Begin now to decode what `read_clips` will be asked for inside the block, in this order.

    At most EARLY_BYTES of pixels wait for it. Inside, every call of `read_clips` uses the same
    processes. Raises InputError for wrong options.
    """
    global _early
    assert _early is None
    count = min(_checked(workers, timeout_s), max(1, len(paths)))
    with closing(Pool(count)) as pool:
        _early = _Early(pool, paths, spec, timeout_s)
        try:
            yield
        finally:
            _early = None


class _Early:
    """Clips of `paths` that are decoded before they are asked for."""

    def __init__(self, pool: Pool, paths: Sequence[Path], spec: ClipSpec, timeout_s: float) -> None:
        self._pool = pool
        self._later = deque((path, spec) for path in dict.fromkeys(paths))
        self._timeout_s = timeout_s
        self._begun: dict[tuple[Path, ClipSpec], Future[Any]] = {}
        self._ahead = max(PREFETCH * pool.size, EARLY_BYTES // math.prod(spec.shape))
        self._fill()

    def clips(
        self, paths: Iterable[Path], spec: ClipSpec, timeout_s: float
    ) -> Generator[tuple[Path, Result], None, None]:
        """As `read_clips`; what an abandoned call has begun is there for the next one."""
        tasks = ((path, self._begin(path, spec, timeout_s)) for path in paths)
        for path, future in _ahead(tasks, _prefetch(spec) * self._pool.size):
            self._begun.pop((path, spec), None)
            self._fill()
            yield path, future.result()

    def _begin(self, path: Path, spec: ClipSpec, timeout_s: float) -> Future[Any]:
        key = path, spec
        if key not in self._begun:
            if key in self._later:
                self._later.remove(key)
            self._begun[key] = self._pool.submit(partial(_read_one, path, spec, timeout_s))
        return self._begun[key]

    def _fill(self) -> None:
        while self._later and len(self._begun) < self._ahead:
            self._begin(*self._later[0], self._timeout_s)


_early: _Early | None = None  # of the block of early_clips that is open


def read_clips(
    paths: Iterable[Path],
    spec: ClipSpec,
    *,
    workers: int | None = None,
    timeout_s: float = 60.0,
    told: Callable[[int], None] = lambda count: None,
) -> Generator[tuple[Path, Result], None, None]:
    """Yield (path, clip or error) for every path, in order, decoded by `workers` processes.

    workers: None begins with one per CPU that this process may use, at most MAX_WORKERS, and keeps
    as many as the first clips show to be needed; see enough_workers. told: called with their
    number, again when it is chosen. A few clips per worker are decoded ahead, at least PREFETCH and
    at most MOST_AHEAD of AHEAD_BYTES together, and of small ones some more, as they are begun in
    groups. An error of one file is yielded, not raised; wrong options raise InputError at once.
    Closing the iterator, or Ctrl-C, ends all children, those of early_workers with its block.
    """
    count = _checked(workers, timeout_s)
    if isinstance(paths, Sized):
        count = min(count, max(1, len(paths)))
    return _in_order(paths, spec, timeout_s, count, workers is None, told)


def enough_workers(decoding_s: float, using_s: float, most: int) -> int:
    """How many processes decode as fast as clips are used, with a quarter to spare.

    decoding_s: for a clip, in one process that has a core to itself. using_s: between taking a clip
    and asking for the next: the model's time. Where that is long, further processes take the
    model's cores from it; where it is short, one process keeps the model waiting.
    """
    if using_s * most <= SPARE * decoding_s:
        return most
    return max(1, math.ceil(SPARE * decoding_s / using_s))


def read_all_windows(
    paths: Iterable[Path],
    spec: ClipSpec,
    windows: Windows,
    *,
    workers: int | None = None,
    timeout_s: float = 60.0,
) -> Generator[tuple[Path, Result], None, None]:
    """As `read_clips`, for the parts of every video: (path, clip or error) part after part.

    Several processes share one long video. timeout_s: for the packets of a video, and then for
    each of its parts; a process that hangs is noticed after a group of them (windows.Plan.groups).
    """
    workers = _checked(workers, timeout_s)
    return _windows_in_order(paths, spec, windows, timeout_s, workers)


def read_grids(
    paths: Iterable[Path],
    spec: ClipSpec,
    windows: Windows,
    *,
    workers: int | None = None,
    timeout_s: float = 60.0,
) -> Generator[tuple[Path, GridPlan | FramesRead | StanError], None, None]:
    """The frames of windows on a grid: of every video (path, its plan), then piece after piece.

    Each frame is read once. An error comes instead of a plan, or of a piece. Several processes
    share one long video, and hold two pieces each. timeout_s: see DecodeWorker.read_frames.
    """
    workers = _checked(workers, timeout_s)
    return _grids_in_order(paths, spec, windows, timeout_s, workers)


def read_by(
    worker: DecodeWorker, path: Path, spec: ClipSpec, windows: Windows | None, *, timeout_s: float
) -> Iterator[tuple[Path, Result]]:
    """What read_clips, or read_all_windows, yields for one video, by a worker of the caller's."""
    if windows is None:
        yield path, _done(worker, partial(_read_one, path, spec, timeout_s))
        return
    plan = _done(worker, partial(_plan_one, path, windows, timeout_s))
    if isinstance(plan, StanError):
        yield path, plan
        return
    for group in plan.groups(spec):
        found = _done(worker, partial(_read_group, path, spec, plan, group, timeout_s))
        for result in found if isinstance(found, list) else [found]:
            yield path, result


def read_grid_by(
    worker: DecodeWorker, path: Path, spec: ClipSpec, windows: Windows, *, timeout_s: float
) -> Iterator[GridPlan | FramesRead | StanError]:
    """What read_grids yields for one video, as read_by reads."""
    plan = _done(worker, lambda w: w.plan_grid(path, windows, spec, timeout_s=timeout_s))
    yield plan
    if isinstance(plan, GridPlan):
        for piece in plan.pieces():
            yield _done(worker, partial(_read_piece, path, spec, plan, piece, timeout_s))


def _done(worker: DecodeWorker, work: Work) -> Any:
    try:
        return do_twice(work, worker)
    except StanError as e:
        return e


def _checked(workers: int | None, timeout_s: float) -> int:
    """How many processes these options ask for; raises InputError for wrong ones."""
    check_reading(workers, timeout_s)
    return default_workers() if workers is None else workers


def _in_order(
    paths: Iterable[Path],
    spec: ClipSpec,
    timeout_s: float,
    workers: int,
    choosing: bool,
    told: Callable[[int], None],
) -> Generator[tuple[Path, Result], None, None]:
    if _early is not None:
        yield from _early.clips(paths, spec, timeout_s)
        return
    told(workers)
    with closing(Pool(workers)) as pool:
        reading = ((path, partial(_read_one, path, spec, timeout_s)) for path in paths)
        tasks = ((path, pool.submit(work)) for path, work in reading)
        used: list[float] = []
        for path, future in _ahead(tasks, _prefetch(spec) * workers, _prefetch(spec) // 2):
            result = future.result()
            start = time.perf_counter()
            yield path, result
            if not choosing:
                continue
            used.append(time.perf_counter() - start)
            if len(used) == PREFETCH * workers + MEASURED:
                decoding = statistics.median(list(pool.seconds))
                pool.keep(enough_workers(decoding, statistics.fmean(used[-MEASURED:]), workers))
                told(pool.size)
                choosing = False


def _windows_in_order(
    paths: Iterable[Path], spec: ClipSpec, windows: Windows, timeout_s: float, workers: int
) -> Generator[tuple[Path, Result], None, None]:
    def groups(path: Path, plan: Plan) -> Iterator[Work]:
        for group in plan.groups(spec):
            yield partial(_read_group, path, spec, plan, group, timeout_s)

    def plan_of(path: Path) -> Work:
        return partial(_plan_one, path, windows, timeout_s)

    with closing(_in_parts(paths, plan_of, groups, workers)) as parts:
        for path, found in parts:
            if isinstance(found, list):
                yield from ((path, result) for result in found)
            elif isinstance(found, StanError):
                yield path, found


def _grids_in_order(
    paths: Iterable[Path], spec: ClipSpec, windows: Windows, timeout_s: float, workers: int
) -> Generator[tuple[Path, GridPlan | FramesRead | StanError], None, None]:
    def plan_of(path: Path) -> Work:
        return lambda worker: worker.plan_grid(path, windows, spec, timeout_s=timeout_s)

    def pieces(path: Path, plan: GridPlan) -> Iterator[Work]:
        return (partial(_read_piece, path, spec, plan, p, timeout_s) for p in plan.pieces())

    with closing(_in_parts(paths, plan_of, pieces, workers)) as parts:
        yield from parts


def _in_parts(
    paths: Iterable[Path],
    plan_of: Callable[[Path], Work],
    works: Callable[[Path, Any], Iterator[Work]],
    workers: int,
) -> Generator[tuple[Path, Any], None, None]:
    """Of every path its plan, and then what the works that it asks for return, in order."""
    with closing(Pool(workers)) as pool:

        def plans() -> Iterator[tuple[Path, Future[Any]]]:
            for path in paths:
                yield path, pool.submit(plan_of(path))

        def tasks() -> Iterator[tuple[Path, Future[Any]]]:
            for path, planned in _ahead(plans(), PREFETCH):
                yield path, planned
                plan = planned.result()
                if not isinstance(plan, StanError):
                    for work in works(path, plan):
                        yield path, pool.submit(work)

        for path, future in _ahead(tasks(), PREFETCH * workers):
            yield path, future.result()


def _prefetch(spec: ClipSpec) -> int:
    """Clips per worker: with two, one that takes long to decode keeps a fast model waiting."""
    return max(PREFETCH, min(MOST_AHEAD, AHEAD_BYTES // math.prod(spec.shape)))


def _ahead(
    tasks: Iterator[tuple[Path, Future[Any]]], count: int, group: int = 1
) -> Iterator[tuple[Path, Future[Any]]]:
    """The tasks in order, of which `count` are begun before the first has to be done.

    group: further ones are begun so many at a time, and so many more are ahead at most.
    """
    waiting: deque[tuple[Path, Future[Any]]] = deque()
    while True:
        if len(waiting) < count:
            waiting.extend(islice(tasks, count + group - 1 - len(waiting)))
        if not waiting:
            return
        yield waiting.popleft()


def _read_one(path: Path, spec: ClipSpec, timeout_s: float, worker: DecodeWorker) -> Clip:
    return worker.read(path, spec, timeout_s=timeout_s)


def _plan_one(path: Path, windows: Windows, timeout_s: float, worker: DecodeWorker) -> Plan:
    return worker.plan(path, windows, timeout_s=timeout_s)


def _read_group(
    path: Path,
    spec: ClipSpec,
    plan: Plan,
    group: list[Window],
    timeout_s: float,
    worker: DecodeWorker,
) -> list[Clip | InputError]:
    return worker.read_windows(path, spec, plan.total_frames, group, timeout_s=timeout_s)


def _read_piece(
    path: Path,
    spec: ClipSpec,
    plan: GridPlan,
    piece: list[int],
    timeout_s: float,
    worker: DecodeWorker,
) -> FramesRead:
    return worker.read_frames(path, spec, plan.total_frames, piece, timeout_s=timeout_s)
