"""A pool gives work to as many workers as are needed, and to no more."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from stan_infer.errors import InputError
from stan_infer.video.decode_worker import CrashError, DecodeWorker
from stan_infer.video.worker_pool import Pool

WORKERS = 3
LONG_S = 60.0


@pytest.fixture
def pool() -> Iterator[Pool]:
    with closing(Pool(WORKERS)) as pool:
        yield pool


def until(pool: Pool, done: int) -> None:
    """Wait for so many results, taken or not, and for the workers to wait again."""
    end = time.monotonic() + LONG_S
    while pool._done < done or len(pool._free) < pool.size:
        assert time.monotonic() < end
        time.sleep(0.001)


def same(worker: DecodeWorker) -> DecodeWorker:
    return worker


def test_one_works_while_results_are_there(pool):
    until(pool, 0)
    ahead = [pool.submit(same) for _ in range(8)]
    until(pool, 8)
    workers = []
    for i in range(20):
        ahead.pop(0).result()
        ahead.append(pool.submit(same))
        until(pool, 9 + i)
        workers.append(ahead[-1].result)
    assert {result() for result in workers} == {pool._workers[0]}


@pytest.mark.parametrize("taken", [0, 3])
def test_all_work_where_none_is_there(pool, taken):
    """taken: before the first is asked for, and behind results that were all taken."""
    for result in [pool.submit(same) for _ in range(taken)]:
        result.result()
    meeting = threading.Barrier(WORKERS)
    met = [pool.submit(lambda worker: (meeting.wait(LONG_S), worker)[1]) for _ in range(WORKERS)]
    assert {future.result() for future in met} == set(pool._workers)


@pytest.mark.parametrize(("there", "working"), [(3, 1), (2, 2), (1, WORKERS)])
def test_all_help_where_few_are_there(pool, there, working):
    """4 are begun and not taken: where 3 are there one worker is enough, else all help."""
    until(pool, 0)
    first = pool.submit(same)
    first.result()
    for _ in range(there):
        pool.submit(same)
    until(pool, 1 + there)
    go, begun = threading.Event(), threading.Semaphore(0)

    def wait(worker: DecodeWorker) -> None:
        begun.release()
        go.wait(LONG_S)

    rest = [pool.submit(wait) for _ in range(4 - there)]
    for _ in range(working):
        assert begun.acquire(timeout=LONG_S)
    assert not begun.acquire(timeout=0.1)
    go.set()
    assert [future.result() for future in rest] == [None] * (4 - there)


def test_all_help_whoever_waits(pool):
    """Results that nobody takes, as an iterator that was left has them, do not count then."""
    until(pool, 0)
    pool.submit(same).result()
    for _ in range(20):
        pool.submit(same)
    until(pool, 21)
    meeting = threading.Barrier(WORKERS)
    met = [pool.submit(lambda worker: meeting.wait(LONG_S)) for _ in range(WORKERS)]
    assert sorted(future.result() for future in met) == list(range(WORKERS))


def test_ctrl_c_while_work_is_given(pool, monkeypatch):
    """However far it came, the pool can be closed."""
    until(pool, 0)

    class Interrupted:
        def put(self, task):
            raise KeyboardInterrupt

    queues = pool._queues
    monkeypatch.setattr(pool, "_queues", [Interrupted()] * WORKERS)
    with pytest.raises(KeyboardInterrupt):
        pool.submit(same)
    monkeypatch.setattr(pool, "_queues", queues)
    pool.close()
    assert not any(thread.is_alive() for thread in pool._threads)


def test_a_result_that_is_asked_twice_counts_once(pool):
    future = pool.submit(same)
    assert future.result() is future.result()
    assert pool._taken == 1


def test_fewer_are_kept(pool):
    """One that is at work ends behind it; what waits goes to those that are kept."""
    meeting, go = threading.Barrier(WORKERS + 1), threading.Event()

    def wait(worker: DecodeWorker) -> DecodeWorker:
        meeting.wait(LONG_S)
        go.wait(LONG_S)
        return worker

    begun = [pool.submit(wait) for _ in range(WORKERS)]
    later = [pool.submit(same) for _ in range(5)]
    meeting.wait(LONG_S)
    pool.keep(1)
    go.set()
    assert {future.result() for future in begun} == set(pool._workers)
    assert {future.result() for future in later} == {pool._workers[0]}
    for thread in pool._threads[1:]:
        thread.join(LONG_S)
        assert not thread.is_alive()


def test_close_ends_what_waits():
    """Work that was not begun gets a worker that is closed, so that nobody waits for ever."""
    pool = Pool(1)
    meeting, go = threading.Barrier(2), threading.Event()

    def wait(worker: DecodeWorker) -> None:
        meeting.wait(LONG_S)
        go.wait(LONG_S)

    pool.submit(wait)
    later = pool.submit(lambda worker: worker._running())
    meeting.wait(LONG_S)
    go.set()
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        later.result()
    assert not any(thread.is_alive() for thread in pool._threads)


def test_errors_and_a_second_try(pool):
    """What a file is to blame for is a result; a crash is tried again, once; a fault is raised."""
    tries = []

    def crash(worker: DecodeWorker) -> str:
        tries.append(worker)
        if len(tries) == 1:
            raise CrashError("gone")
        return "done"

    def refuse(worker: DecodeWorker) -> None:
        raise InputError("bad")

    def fail(worker: DecodeWorker) -> None:
        raise ZeroDivisionError

    assert pool.submit(crash).result() == "done"
    assert str(pool.submit(refuse).result()) == "bad"
    with pytest.raises(ZeroDivisionError):
        pool.submit(fail).result()
