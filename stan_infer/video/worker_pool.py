"""Workers that decode side by side, each a process (decode_worker), and what they are given."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeAlias

from stan_infer.errors import StanError
from stan_infer.video.decode_worker import CrashError, DecodeWorker

MEASURED = 16  # tasks whose time is kept
_END_S = 10.0  # for a thread whose child was killed

Work: TypeAlias = Callable[[DecodeWorker], Any]
_Task: TypeAlias = tuple[Work, Future[Any]]


class _Future(Future[Any]):
    """What a pool was given to do; the pool hears when its result is asked for first."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool: Pool | None = pool

    def result(self, timeout: float | None = None) -> Any:
        """What the work returned."""
        if self._pool is not None:
            self._pool.taken(there=self.done())
            self._pool = None
        return super().result(timeout)


class Pool:
    """Workers, each served by a thread, that take what is submitted in order.

    Where most results are there before they are asked for, one worker goes on alone: the others
    would take its core from a small model.
    """

    def __init__(self, workers: int) -> None:
        """Start the threads; a worker's process starts with the first work."""
        self.size = workers
        self.seconds: deque[float] = deque(maxlen=MEASURED)  # of the last tasks
        self._lock = threading.Lock()
        self._waiting: deque[_Task] = deque()
        self._free: set[int] = set()  # workers that wait for their queue
        self._queues: list[SimpleQueue[_Task | None]] = [SimpleQueue() for _ in range(workers)]
        self._begun = self._done = self._taken = 0  # tasks; results that are there, or were taken
        self._closed = False
        self._workers = [DecodeWorker() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(i,), name=f"decode {i}", daemon=True)
            for i in range(workers)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.close()
            raise

    def submit(self, work: Work) -> Future[Any]:
        """Give work to a free worker; its result is what it returns, or its StanError."""
        future = _Future(self)
        with self._lock:
            self._begun += 1
            self._waiting.append((work, future))
            self._wake()
        return future

    def taken(self, *, there: bool) -> None:
        """A result is asked for; there: nobody has to wait for it."""
        with self._lock:
            self._taken += 1
            self._wake(blocked=not there)

    def _wake(self, *, blocked: bool = False) -> None:
        """Give what waits to workers that are free, the first of them first.

        blocked: somebody waits for a result; those that are there may be ones that nobody takes.
        """
        few = 4 * (self._done - self._taken) < 3 * (self._begun - self._taken)
        few = few or blocked or not self._taken
        while self._waiting and self._free and (few or len(self._free) == self.size):
            self._free.remove(i := min(self._free))
            self._queues[i].put(self._waiting.popleft())

    def keep(self, count: int) -> None:
        """End all but so many workers, after what they have begun."""
        with self._lock:
            self.size = min(self.size, count)
            for i in [i for i in self._free if i >= self.size]:
                self._free.remove(i)
                self._queues[i].put(None)

    def close(self) -> None:
        """End or leave all children (DecodeWorker.leave) and wait for the threads."""
        for worker in self._workers:
            worker.leave()
        with self._lock:
            self._closed = True
            for queue in self._queues:  # all: Ctrl-C may have come within _wake
                queue.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                # One that Ctrl-C left waiting for the lock of a Future does not end.
                thread.join(_END_S)

    def _next(self, i: int) -> _Task | None:
        """What worker i does next; None: it ends."""
        with self._lock:
            if i >= self.size:
                return None
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                return None
            self._free.add(i)
        return self._queues[i].get()

    def _serve(self, i: int) -> None:
        worker = self._workers[i]
        while (task := self._next(i)) is not None:
            work, future = task
            try:
                future.set_result(do_twice(work, worker))
            except StanError as e:
                future.set_result(e)
            except Exception as e:
                future.set_exception(e)
            self.seconds.append(worker.took_s)
            with self._lock:
                self._done += 1
        worker.close()


def do_twice(work: Work, worker: DecodeWorker) -> Any:
    """Do it again if the process died: it may have been killed for others' use of memory."""
    with suppress(CrashError):
        return work(worker)
    return work(worker)
