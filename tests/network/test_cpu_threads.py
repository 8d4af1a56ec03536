"""Clips run side by side with one thread each, and torch's own number of threads comes back."""

import threading

import pytest
import torch

from stan_infer.network import cpu_threads
from stan_infer.network.cpu_threads import side_by_side, threads_for
from stan_infer.network.fold import fold_video


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(cpu_threads, "usable_cpus", lambda: 3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_items_run_at_the_same_time_with_one_thread_each_and_come_in_order():
    together = threading.Barrier(3, timeout=120)

    def run(i):
        together.wait()  # passes only when three items run at once
        return i * i, torch.get_num_threads()

    found = list(side_by_side(run, range(6)))
    assert found == [(i, (i * i, 1)) for i in range(6)]


def test_items_are_taken_one_ahead_and_not_all():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    readings = side_by_side(lambda i: i, items())
    assert next(readings) == (0, 0) and taken == [0, 1, 2, 3]
    readings.close()
    assert taken == [0, 1, 2, 3]


def test_an_error_of_an_item_or_of_the_items_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda i: 1 // (2 - i), range(9)))

    def broken():
        yield 1
        raise KeyError("x")

    with pytest.raises(KeyError):
        list(side_by_side(lambda i: i, broken()))
    assert list(side_by_side(lambda i: i, [])) == []


def test_small_products_take_one_thread(tiny_model, monkeypatch):
    weights = fold_video(tiny_model)
    for small, wanted in ((cpu_threads.SMALL, 1), (0, 2)):
        monkeypatch.setattr(cpu_threads, "SMALL", small)
        with threads_for(weights, 15):
            assert torch.get_num_threads() == wanted
        assert torch.get_num_threads() == 2
