"""Comparison of arrays: relative to the largest wanted value, and a NaN never passes."""

import math

import numpy as np
import pytest

from stan_infer.artefacts.difference import Difference, relative_error


def test_relative_to_the_largest_wanted_value():
    wanted = np.array([[4.0, -8.0], [1.0, 0.0]])
    assert relative_error(wanted + 2, wanted) == 0.25
    assert relative_error(wanted + 2, wanted, scale=2.0) == 1.0
    assert relative_error(np.empty((0, 2)), np.empty((0, 2)), scale=1.0) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("first", [True, False])
def test_nan_and_infinity_fail_wherever_they_are(bad, first):
    good = np.ones((2, 3), np.float32)
    wrong = good.copy()
    wrong[0, 1] = bad
    difference = Difference()
    for got in (wrong, good) if first else (good, wrong):
        difference.add(got, good)
    assert not difference.relative <= 1
    assert not relative_error(good, wrong) <= 1
    assert not relative_error(good * 0, good * 0) <= 1


def test_the_worst_of_all_is_recorded():
    difference = Difference()
    for got, wanted in (([[3.0, 4.0]], [[3.0, 4.0]]), ([[4.0, -3.0]], [[3.0, 4.0]])):
        difference.add(np.array(got), np.array(wanted))
    assert difference.record() == {"max_rel": 7 / 4, "max_abs": 7.0, "min_cos": 0.0}
