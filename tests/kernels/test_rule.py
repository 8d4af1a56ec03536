"""Which linears run in the library and with which tiles, as the arithmetic has it."""

import dataclasses

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from benchmarks import split_k
from stan_infer.kernels import rule, tuned
from stan_infer.kernels.rule import Epilogue
from stan_infer.kernels.tuned import Tile

D = 768
FC1 = (4 * D, D, Epilogue(norm=True, activation=True))
FC2 = (D, 4 * D, Epilogue(residual=True))
LARGE = 8 * 12 * 197  # rows of B/16, eight clips


def library(family, rows, n, k, epilogue):
    return tuned.in_library(family, torch.bfloat16, rows, n, k, epilogue)


def fuses(family, places):
    return tuned.fuses_qkv(family, torch.bfloat16, 12, places, 12, D)


def layer(family, rows, size=2):
    own = tuned.tiles("linear" if size == 2 else "fp8_linear", family, size)
    return rule.layer_in_library(family, own, size, rows, D)


@pytest.mark.parametrize("family", tuned.FAMILIES)
def test_few_rows_go_to_the_library_and_fc1_to_our_kernel(family):
    for n, k, epilogue in (FC1, FC2, (3 * D, D, Epilogue(norm=True))):
        assert library(family, 64, n, k, epilogue)
        assert library(family, 1, n, k, epilogue)
    assert layer(family, 64) == layer(family, 1) == set(rule.LAYER)
    for rows in (65, 600, LARGE):
        assert not layer(family, rows) & {"fc1", "out"}


def test_the_products_of_a_layer_are_chosen_together():
    """fc2 and the qkv behind it go to the library as one: the norm between them is a pass for
    either, so that the second costs no launch more. Where ours is slow, more launches may win."""
    assert layer("sm90", LARGE) == layer("sm100", LARGE) == {"qkv", "fc2"}
    assert layer("sm89", LARGE) == set()
    assert not layer("sm90", LARGE, 1) & {"fc1"}  # two passes behind it in 8 bits
    assert layer("sm80", LARGE, 1) == set(rule.LAYER)  # it has no kernel in 8 bits


def test_one_launch_more_in_a_layer_unless_others_are_clearly_faster(monkeypatch):
    """Each plan against all: with free launches, and with a product of ours that takes ages."""

    def launches(inside):
        pairs = [("qkv", "fc2"), ("fc1", "out")]
        return sum(bool({*pair} & inside) for pair in pairs) + ("fc1" in inside)

    for family in tuned.FAMILIES:
        for rows in (65, 200, 600, 2364, 4800, LARGE):
            assert launches(layer(family, rows)) <= rule.MORE
    slow = dataclasses.replace(rule.GPUS["sm90"], pointers=0.1, descriptors=0.1)
    monkeypatch.setitem(rule.GPUS, "sm90", slow)
    rule.layer_in_library.cache_clear()
    try:
        assert layer("sm90", LARGE) == set(rule.LAYER)
    finally:
        rule.layer_in_library.cache_clear()


def test_a_bias_that_the_stream_does_not_carry_is_an_addition_more():
    shape = ("sm100", LARGE, D, D)
    assert library(*shape, Epilogue(residual=True))
    assert not library(*shape, Epilogue(residual=True, carried=False))
    assert not tuned.in_library(
        *(
            "sm90",
            torch.bfloat16,
            LARGE,
            D,
            4 * D,
            Epilogue(residual=True, kept=True, carried=False),
        ),
        "fc2",
    )


def test_the_library_has_small_tiles_too():
    """Few rows do not take the time of a wave of large tiles, nor none at all."""
    small, large = (rule.library_us("sm90", rows, D, D) for rows in (65, LARGE))
    assert 2.0 < small < large / 5
    assert rule.library_us("sm90", 65, 4 * D, D) >= 4 * D * D * 2 / 3.35e6


def test_the_arithmetic():
    """A pass over memory that the library needs beside its product tips the balance."""
    n, k = 3 * D, D
    for rows in (600, 2364, LARGE):
        bare = library("sm90", rows, n, k, Epilogue())
        for worse in (
            Epilogue(norm=True, sums=True),
            Epilogue(activation=True),
            Epilogue(kept=True),
        ):
            assert bare or not library("sm90", rows, n, k, worse)
    # Large products that need nothing beside are the library's; fc2 is one, added in place.
    assert library("sm90", LARGE, 4 * D, D, Epilogue())
    assert library("sm90", LARGE, *FC2)
    assert library("sm90", LARGE, D, D, Epilogue())
    assert not library("sm90", LARGE, D, D, Epilogue(residual=True, kept=True))


def test_no_rule_where_nothing_is_compiled_or_known():
    assert not library("cpu", LARGE, *FC2) and not library("cpu", 8, *FC2)
    symbol = ShapeEnv().create_unbacked_symint()
    assert not library("sm90", symbol, *FC2)
    options = [Tile(64, 64, 64, 4, 4), Tile(128, 128, 64, 8, 3)]
    assert rule.fastest(options, "linear", "sm90", 132, symbol, D, D) == options[0]


def test_q_k_v_and_temporal_attention_in_one_kernel():
    """Where its instructions are no limit, or where a launch more costs more than they do."""
    assert fuses("sm90", 49) and fuses("sm80", 196)
    assert not fuses("sm100", 64 * 196)
    assert fuses("cpu", 49)


def test_newer_gpus_take_the_figures_of_the_newest_that_is_older():
    assert rule.gpu("sm86") == rule.GPUS["sm80"] and rule.gpu("sm103") == rule.GPUS["sm100"]
    assert rule.gpu("sm75") == rule.GPUS["sm80"]
    large = Tile(128, 256, 64, 8, 4, 0, 1, True)
    assert rule.figures("sm103", large, "linear") == rule.figures("sm100", large, "linear")


@pytest.mark.parametrize("family", tuned.FAMILIES)
def test_every_start_value_has_figures(family):
    for operation in ("linear", "fp8_linear", "temporal_qkv_attention"):
        rows = {tuple(r["tile"]) for r in rule.compiled()[family][operation]}
        assert rows == {dataclasses.astuple(t) for t in tuned.tiles(operation, family)}
        for tile in tuned.tiles(operation, family):
            own = rule.figures(family, tile, operation)
            assert own.issue > 0 and 32 <= own.registers <= 255 and own.shared_bytes > 0


def test_tiles_grow_with_the_work():
    """Few rows take small tiles, which keep more processors busy; a large product the largest."""
    options = tuned.tiles("linear", "sm90")
    area = []
    for rows in (65, 200, 600, 2364, LARGE):
        tile = rule.fastest(options, "linear", "sm90", 132, rows, D, D)
        area.append(tile.bm * tile.bn)
    assert area == sorted(area) and area[0] < 64 * 128 and area[-1] >= 128 * 128
    assert rule.fastest(options, "linear", "sm90", 132, LARGE, 4 * D, D).persistent


@pytest.mark.parametrize("change", [{"issue": 4.0}, {"registers": 2.0}, {"shared_bytes": 3.0}])
def test_every_figure_counts(change, monkeypatch):
    """A product gets no faster with more instructions, registers or shared memory, some slower."""
    tile = Tile(128, 128, 64, 8, 3)
    own = rule.figures("sm90", tile, "linear")
    ((name, factor),) = change.items()
    worse = dataclasses.replace(own, **{name: int(getattr(own, name) * factor)})
    before = [rule.product_us("sm90", tile, 132, rows, n, D) for rows, n in SIZES]
    monkeypatch.setattr(rule, "figures", lambda *_: worse)
    after = [rule.product_us("sm90", tile, 132, rows, n, D) for rows, n in SIZES]
    assert all(a >= b for a, b in zip(after, before, strict=True)) and after != before


def test_splitting_the_sum_over_k_would_not_pay():
    """What BENCHMARKS.md says of it. Where the library needs passes beside, K is short already."""
    for family in split_k.FAMILIES:
        assert all(split_k.saved_us(family, rows) < 0.5 for rows in (1, 8, 64))
    assert split_k.saved_us("sm90", 600) == split_k.saved_us("sm100", 600) == 0
    assert all(r["split"] == 1 for r in split_k.rows() if r["product"] != "fc2")
    # It is the library that makes it needless: our kernel would gain, where memory is no limit.
    fc2 = [r for r in split_k.rows() if r["product"] == "fc2" and r["family"] != "sm89"]
    assert all(r["split_us"] < r["ours_us"] for r in fc2)


SIZES = [(rows, n) for rows in (600, 2364, LARGE) for n in (D, 3 * D, 4 * D)]
