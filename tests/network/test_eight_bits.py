from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import torch

from stan_infer.errors import InputError
from stan_infer.network.eight_bits import (
    LINEARS,
    grid,
    map_products,
    products,
    quantise_product,
    round_to,
)
from stan_infer.network.fold import Product, fold_video
from stan_infer.network.model import Stan, init_random
from stan_infer.network.torch_ops import encode_video
from stan_infer.quantisation.bound import Measured, fewest_returned
from stan_infer.quantisation.histogram import METHODS, Histogram, clipping_point
from stan_infer.quantisation.observe import count, sample
from stan_infer.quantisation.quant_plan import with_gains
from stan_infer.quantisation.replay import Replay
from stan_infer.quantisation.smooth import choose, gains, through_values
from tests.conftest import tiny_config


def test_e4m3_is_that_of_ml_dtypes_to_the_bit():
    rng = np.random.default_rng(0)
    x = np.concatenate([
        rng.standard_normal(50_000).astype("f4") * 50,
        rng.standard_normal(50_000).astype("f4") * 0.01,
        np.arange(-4096, 4097, dtype="f4") / 2**16,
    ])  # fmt: skip
    got = round_to("fp8", torch.from_numpy(x)).view(torch.uint8).numpy()
    wanted = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert np.array_equal(got, wanted)
    values = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert np.array_equal(grid("fp8"), values)


def test_histograms_do_not_depend_on_the_order():
    parts = [torch.randn(999) * 10.0**k for k in (-3, 0, 2, -1)] + [torch.full((3,), 4.0)]

    def total(order) -> Histogram:
        h = Histogram()
        for i in order:
            h.add(count(parts[i]))
        return h

    first = total(range(5))
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        other = total(order)
        assert (other.exponent, other.largest) == (first.exponent, first.largest)
        assert np.array_equal(other.counts, first.counts)
    assert np.array_equal(count(torch.cat(parts)).counts, first.counts)
    assert first.counts.sum() == sum(len(p) for p in parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_clipping_points_lie_within_what_was_seen(method, format):
    h = count(torch.randn(100_000))
    assert 0 < clipping_point(h, method, grid(format)) <= h.largest
    assert clipping_point(Histogram(), method, grid(format)) == 0.0


def test_mse_cuts_off_a_lonely_value_and_max_does_not():
    h = count(torch.cat([torch.rand(10_000_000), torch.tensor([1.9])]))
    assert clipping_point(h, "max", grid("int8")) == pytest.approx(1.9)
    assert clipping_point(h, "mse", grid("int8")) < 1.5


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number_is_refused(scale):
    with pytest.raises(InputError, match="positive"):
        quantise_product(Product(torch.ones(2, 2), torch.ones(2)), scale, "int8")


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_a_dead_row_stays_zero(format):
    weight = torch.randn(4, 16)
    weight[2] = 0
    q = quantise_product(Product(weight, torch.zeros(4)), 0.02, format)
    y = q.apply(torch.randn(3, 16))
    assert y[:, 2].eq(0).all() and y.isfinite().all()


def test_smoothing_is_exact_and_helps_outliers(tiny_model):
    weights = map_products(fold_video(tiny_model.double()), lambda n, p: p)
    tiny_model.float()
    s = tiny_model.config.image_size
    video = torch.randint(0, 256, (1, 3, s, s, 3), dtype=torch.uint8)
    patches = weights.patches
    gamma = patches.gamma.clone()
    gamma[:2] *= 40  # outlier channels of the residual stream
    weights = dataclasses.replace(weights, patches=dataclasses.replace(patches, gamma=gamma))
    found = choose(weights, sample(weights, video), "int8")
    assert max(found.strengths.values()) > 0
    assert any(n.endswith("/out") for n in found.factors)
    factors = gains(found)

    exact = encode_video(weights, video)[0]
    smoothed = with_gains(through_values(weights, found), factors)
    assert (encode_video(smoothed, video)[0] - exact).norm() / exact.norm() < 1e-10
    assert choose(weights, sample(weights, video), "fp8").factors == {}
    assert set(found.strengths) <= set(products(weights))


@pytest.mark.parametrize("branch", ["selfattn", "conv"])
def test_a_replay_from_any_block_is_the_whole_run(branch):
    config = tiny_config(branch=branch)
    weights = fold_video(init_random(Stan(config)).eval())
    s = config.image_size
    video = torch.randint(0, 256, (2, 3, s, s, 3), dtype=torch.uint8)
    replay = Replay(weights, video)
    assert torch.equal(replay.embeds, encode_video(weights, video)[0])
    names = [n for n in products(weights) if n.endswith(LINEARS) and not n.endswith("single")]
    for name in names:

        def louder(n: str, p: Product, name: str = name) -> Product:
            return dataclasses.replace(p, weight=p.weight * 1.1) if n == name else p

        changed = map_products(weights, louder)
        wanted = encode_video(changed, video)[0]
        assert not torch.equal(wanted, replay.embeds), name
        assert torch.equal(replay.changed(changed, name), wanted), name


@pytest.mark.parametrize("needed", range(12))
def test_the_search_returns_as_few_linears_as_hold_the_bound(needed):
    order = [f"linear{i}" for i in range(11)]
    tried = []

    def measure(kept) -> Measured:
        tried.append(len(kept))
        assert list(kept) == order[: len(kept)]
        return Measured(cosine=0.9 + 0.001 * len(kept), is_met=len(kept) >= needed)

    search = fewest_returned(order, measure)
    assert len(search.kept) == min(needed, 10) and search.best.is_met == (needed <= 10)
    assert len(tried) == len(set(tried)) == len(search.rows()) <= 8
