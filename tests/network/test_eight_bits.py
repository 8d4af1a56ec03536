import dataclasses
import functools

import ml_dtypes
import numpy as np
import pytest
import torch

from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.errors import InputError
from stan_infer.network.eight_bits import (
    LINEARS,
    NUMBER_FORMATS,
    NumberFormat,
    quantise_linear,
    through_v,
)
from stan_infer.network.fold import fold_video
from stan_infer.network.folded import FoldedLinear, linears, map_linears
from stan_infer.network.fused import video_tower
from stan_infer.network.model import Stan, init_random
from stan_infer.network.torch_ops import TorchOps, encode_video, in_numpy, in_torch, rounded
from stan_infer.quantisation.bound import Measured, fewest_returned
from stan_infer.quantisation.histogram import METHODS, Histogram, clipping_point
from stan_infer.quantisation.observe import count
from stan_infer.quantisation.sensitivity import Replay
from stan_infer.quantisation.smooth import _error, choose, through_values, with_gains
from stan_infer.quantisation.watched import ROWS, Sample, Watched
from stan_infer.verification.stored import BLOCK
from tests.conftest import tiny_config


def test_formats_are_those_that_graphs_are_written_in():
    assert tuple(NUMBER_FORMATS) == EIGHT_BITS


@pytest.mark.parametrize(
    ("format", "theirs"),
    [
        (NUMBER_FORMATS["fp8"], ml_dtypes.float8_e4m3fn),
        (NumberFormat("float8_e5m2", 57344.0), ml_dtypes.float8_e5m2),
    ],
    ids=["e4m3", "e5m2"],
)
def test_floats_of_8_bits_are_those_of_ml_dtypes_to_the_bit(format, theirs):
    rng = np.random.default_rng(0)
    x = np.concatenate([
        rng.standard_normal(50_000).astype("f4") * 50,
        rng.standard_normal(50_000).astype("f4") * 0.01,
        np.arange(-4096, 4097, dtype="f4") / 2**16,
    ])  # fmt: skip
    got = format.round(x).view(np.uint8)
    wanted = np.clip(x, -format.largest, format.largest).astype(theirs).view(np.uint8)
    assert np.array_equal(got, wanted)
    values = np.arange(128, dtype=np.uint8).view(theirs).astype(np.float64)
    assert np.array_equal(format.values(), values[np.isfinite(values)])


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


def test_bins_are_those_of_histc_and_the_largest_needs_none():
    for x in (torch.randn(9999) * 3, torch.tensor([2.0, -4.0, 0.0, 1e-30]), torch.zeros(3)):
        h, bare = count(x), Histogram.up_to(float(x.abs().max()))
        wanted = torch.histc(x.abs(), len(h.counts), 0.0, h.width * len(h.counts))
        assert np.array_equal(h.counts, wanted.numpy())
        assert (bare.largest, bare.exponent) == (h.largest, h.exponent)
        assert not bare.counts.any() and h.largest == float(x.abs().max())
    for value in ("nan", "inf", "-inf"):
        assert not np.isfinite(count(torch.tensor([1.0, float(value)])).largest)


def product(w: FoldedLinear, x: np.ndarray) -> np.ndarray:
    """W x + b of rows as the network in torch computes it."""
    return TorchOps(1, 1).linear(torch.from_numpy(x), in_torch(w)).numpy()


def test_the_error_of_a_strength_is_that_of_the_quantised_linear():
    """The search computes it in fewer passes over the weight."""
    rng = np.random.default_rng(0)
    w = FoldedLinear("a", "b", rng.standard_normal((48, 64), "f4"), np.zeros(48, "f4"))
    w.weight[5] = 0
    x = rng.standard_normal((40, 64), "f4") * 3
    exact = x @ w.weight.T
    for factor in (None, rng.random(64, "f4") + np.float32(0.5)):
        channels, rows = (v if factor is None else v * factor for v in (np.abs(x).max(0), x))
        q = quantise_linear(w, float(channels.max()) / 127, "int8", factor)
        wanted = float(np.square(product(q, rows) - exact).sum())
        got = _error(w.weight, Sample(np.abs(x).max(0), x, 40), exact, "int8", factor)
        assert got == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("format", list(NUMBER_FORMATS))
@pytest.mark.parametrize("is_turned", [False, True])
def test_weights_in_8_bits_are_to_the_bit_those_of_the_formula_in_torch(format, is_turned):
    """Whatever their order in memory, with factors of the norm and through V; a row is zero."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((3 * 64, 64), "f4") * rng.lognormal(size=(3 * 64, 1)).astype("f4")
    weight[7] = 0
    gain, factor = (np.exp(rng.standard_normal(64)).astype("f4") for _ in range(2))
    given = np.asfortranarray(weight) if is_turned else weight
    w = FoldedLinear("a", "qkv", given, rng.standard_normal(3 * 64).astype("f4"))
    q = quantise_linear(through_v(w, factor), 0.02, format, gain)

    kind, exact = NUMBER_FORMATS[format], torch.tensor(weight)
    exact[-64:] *= torch.tensor(factor)[:, None]
    exact /= torch.tensor(gain)
    smallest = torch.finfo(torch.float32).tiny * 1e6
    scale = exact.abs().amax(1).clamp(min=smallest) / kind.largest
    codes = rounded(exact / scale[:, None], kind).view(torch.int8)
    assert np.array_equal(q.weight, codes.numpy()) and len(np.unique(q.weight)) > 100
    assert np.array_equal(q.scale, scale.numpy()) and q.scale.dtype == np.float32
    bias = torch.tensor(w.bias)
    bias[-64:] *= torch.tensor(factor)
    assert np.array_equal(q.bias, bias.numpy()) and np.array_equal(given, weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_clipping_points_lie_within_what_was_seen(method, format):
    h = count(torch.randn(100_000))
    assert 0 < clipping_point(h, method, NUMBER_FORMATS[format].values()) <= h.largest
    assert clipping_point(Histogram(), method, NUMBER_FORMATS[format].values()) == 0.0


def test_mse_cuts_off_a_lonely_value_and_max_does_not():
    h = count(torch.cat([torch.rand(10_000_000), torch.tensor([1.9])]))
    assert clipping_point(h, "max", NUMBER_FORMATS["int8"].values()) == pytest.approx(1.9)
    assert clipping_point(h, "mse", NUMBER_FORMATS["int8"].values()) < 1.5


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number_is_refused(scale):
    with pytest.raises(InputError, match="positive"):
        quantise_linear(FoldedLinear("a", "b", np.ones((2, 2)), np.ones(2)), scale, "int8")


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_a_dead_row_stays_zero(format):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 16), "f4")
    weight[2] = 0
    q = quantise_linear(FoldedLinear("a", "b", weight, np.zeros(4, "f4")), 0.02, format)
    y = product(q, rng.standard_normal((3, 16), "f4"))
    assert not y[:, 2].any() and np.isfinite(y).all()


def test_smoothing_is_exact_and_helps_outliers(tiny_model):
    weights = in_numpy(fold_video(tiny_model.double()))
    tiny_model.float()
    s, t = tiny_model.config.image_size, tiny_model.config.frames
    video = torch.randint(0, 256, (1, t, s, s, 3), dtype=torch.uint8)
    patches = weights.patches
    gamma = patches.gamma.copy()
    gamma[:2] *= 40  # outlier channels of the residual stream
    weights = dataclasses.replace(weights, patches=dataclasses.replace(patches, gamma=gamma))
    seen = Watched(weights, tiny_model.config).sample(video.numpy())[0]
    seen = {
        n: Sample(*(v.astype("f8") for v in (x.channels, x.rows)), x.count) for n, x in seen.items()
    }
    found = choose(weights, seen, "int8")
    assert max(found.strengths.values()) > 0
    assert found.values

    exact = encode_video(in_torch(weights), video)[0]
    smoothed = in_torch(with_gains(through_values(weights, found), found.gains))
    assert (encode_video(smoothed, video)[0] - exact).norm() / exact.norm() < 1e-10
    in_fp8 = choose(weights, seen, "fp8")
    assert in_fp8.gains == in_fp8.values == {}
    assert set(found.strengths) <= set(linears(weights))


@pytest.mark.parametrize("branch", ["selfattn", "conv"])
def test_a_replay_from_any_block_is_the_whole_run(branch):
    config = tiny_config(branch=branch)
    weights = fold_video(init_random(Stan(config)).eval())
    s = config.image_size
    video = torch.randint(0, 256, (2, 3, s, s, 3), dtype=torch.uint8)
    replay = Replay(weights, video)
    # What bisect looks at one by one: a block ends where it is added to the residual stream.
    assert all(BLOCK.fullmatch(name) for name in replay._kept)
    assert torch.equal(replay.embeds, encode_video(weights, video)[0])
    tried = [w for w in linears(weights).values() if w.name in LINEARS and w.name != "single"]
    for linear in tried:
        louder = dataclasses.replace(linear, weight=linear.weight * 1.1)
        changed = map_linears(weights, lambda w, new=louder: new if w.path == new.path else w)
        wanted = encode_video(changed, video)[0]
        assert not torch.equal(wanted, replay.embeds), linear.path
        assert torch.equal(replay.changed(changed, linear), wanted), linear.path


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


def test_what_is_watched_is_what_the_linears_read(tiny_model):
    """Maxima, rows and embeddings are, but for rounding, those of the network in plain torch."""
    weights, c = fold_video(tiny_model), tiny_model.config
    video = torch.randint(0, 256, (1, c.frames, c.image_size, c.image_size, 3), dtype=torch.uint8)
    read = {}

    class Seeing(TorchOps):
        def linear(self, x, w, **options):
            read[w.path] = x.flatten(0, -2)
            return super().linear(x, w, **options)

    mean, _ = video_tower(Seeing(1, c.frames), weights, video)
    watched = Watched(weights, c)
    samples, embedding = watched.sample(video.numpy())
    largest, again = watched.largest(video.numpy())
    assert set(samples) == {p for p, w in linears(weights).items() if w.name in LINEARS} & set(read)
    near = functools.partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
    near(torch.from_numpy(embedding), mean)
    assert np.array_equal(again, embedding)
    for path, s in samples.items():
        x = read[path]
        assert s.count == len(x) and np.array_equal(s.channels, largest[path])
        near(torch.from_numpy(s.channels), x.abs().amax(0))
        near(torch.from_numpy(s.rows), x[:: max(len(x) // ROWS, 1)][:ROWS])
