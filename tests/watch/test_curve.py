"""Curves in bounded memory."""

import numpy as np

from stan_infer.watch import curve as module
from stan_infer.watch.curve import Curve
from stan_infer.watch.events import Event


def test_few_points_are_kept_as_they_are():
    curve = Curve(2)
    for i in range(100):
        curve.add(float(i), np.array([i, -i], float))
    assert curve.times.tolist() == list(range(100))
    assert curve.values[:, 1].tolist() == [-i for i in range(100)]


def test_of_many_the_highest_stay(monkeypatch):
    monkeypatch.setattr(module, "MAX_POINTS", 200)
    values, curve = np.random.default_rng(0).random(1000), Curve(1)
    for i, value in enumerate(values):
        curve.add(float(i), np.array([value]))
    assert 100 <= len(curve.times) <= 200 and (np.diff(curve.times) > 0).all()
    ends = [*curve.times[1:], 1000]
    wanted = [values[int(a) : int(b)].max() for a, b in zip(curve.times, ends, strict=True)]
    assert curve.values[:, 0].tolist() == wanted


def test_a_break_parts_the_line():
    curve = Curve(1)
    curve.add_break()  # nothing is there yet
    curve.add(0.0, np.array([1.0]))
    curve.add_break()
    curve.add_break()
    curve.add(9.0, np.array([2.0]))
    assert np.isnan(curve.values[:, 0]).tolist() == [False, True, False]
    assert curve.times.tolist() == [0, 0, 9]


def test_events_are_bounded(monkeypatch):
    curve = Curve(1)
    for i in range(module.MAX_EVENTS + 5):
        curve.events.append(Event(i, "a", 0, 1, 1, 0, 1))
    assert len(curve.events) == module.MAX_EVENTS and curve.events[0].number == 5


def test_of_very_many_texts_there_are_fewer_points():
    curve = Curve(50_000)
    for i in range(400):
        curve.add(float(i), np.zeros(50_000))
    assert len(curve.times) <= 2**23 // 50_000


def test_breaks_stay_where_neighbours_share_a_point(monkeypatch):
    """Neither side of a break shares a point with the other, nor with the break."""
    monkeypatch.setattr(module, "MAX_POINTS", 100)
    curve = Curve(1)
    for i in range(101):
        curve.add(float(i), np.array([1.0]))
    assert len(curve.times) == 51  # the last has room for another
    curve.add_break()
    for i in range(200, 203):
        curve.add(float(i), np.array([float(i)]))
    assert np.isnan(curve.values[50:, 0]).tolist() == [False, True, False, False]
    assert curve.times[50:].tolist() == [100, 100, 200, 202]
    assert curve.values[52:, 0].tolist() == [201, 202]
