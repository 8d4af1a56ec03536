"""Scores and metrics against the authors' code (golden data), and against plain formulas."""

import tracemalloc

import numpy as np
import pytest

from stan_infer import scores
from stan_infer.errors import InputError
from stan_infer.evaluation.metrics import rank_figures, released_ranks, untied
from stan_infer.scores import cosine_scores, mug_scores, normalize

FP32 = 1e-5  # relative; the release in float32 against itself in float64 differs by 1e-6
FP64 = 1e-12  # relative; measured 1e-14
MUG_CASES = ("base", "one_frame", "long", "zero_vectors", "exact_zero_logits", "scaled")
MODES = {"mug": "mug_frame_token_simple", "mug_frame_token": "mug_frame_token"}


@pytest.fixture(scope="module")
def mug(golden):
    return np.load(golden / "mug.npz")


def mug_plainly(text, mask, video, mode="mug", tau=100.0):
    """the Mug head's formula word for word, in float64, one pair at a time."""

    def softmax(x):
        with np.errstate(invalid="ignore"):
            e = np.exp(x - x.max(0))
        return e / e.sum(0)

    def no_zeros(x):
        return np.where(x == 0, -np.inf, x)

    def unit(x):
        x = x.astype(np.float64)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)

    text, video = unit(text), unit(video)
    scores = np.empty((len(text), len(video)))
    for a, t in enumerate(text):
        for b, v in enumerate(video):
            s = mask[a][:, None] * (t @ v.T)  # [L, T]
            w, u = softmax(tau * s.T).T, softmax(no_zeros(tau * s))
            if mode == "mug":
                per_token, per_frame = (w * s).sum(1), (u * s).sum(0)
                p, q = softmax(no_zeros(tau * per_token)), softmax(tau * per_frame)
                scores[a, b] = ((p * per_token).sum() + (q * per_frame).sum()) / 2
            else:
                per_token, per_frame = ((w @ v) * t).sum(1), ((u.T @ t) * v).sum(1)
                p, q = softmax(no_zeros(tau * per_token)), softmax(tau * per_frame)
                scores[a, b] = (p @ t) @ (q @ v)
    return scores


def features(q=5, b=7, length=9, t=4, e=12, seed=0, dtype=np.float64):
    r = np.random.default_rng(seed)
    mask = np.arange(length) < r.integers(1, length + 1, q)[:, None]
    return (
        r.standard_normal((q, length, e)).astype(dtype),
        mask,
        r.standard_normal((b, t, e)).astype(dtype),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", MUG_CASES)
def test_mug_equals_the_release(mug, case, mode):
    text, video, mask = (mug[f"{case}_{name}"] for name in ("text", "video", "mask"))
    for dtype, suffix, tolerance in ((np.float32, "", FP32), (np.float64, "__fp64", FP64)):
        got = mug_scores(text.astype(dtype), mask, video.astype(dtype), mode=mode)
        assert got.dtype == dtype
        wanted = mug[f"{case}__{MODES[mode]}{suffix}"]
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=0, equal_nan=True)


def test_golden_has_nan_cases(mug):
    assert np.isnan(mug["zero_vectors__mug_frame_token_simple"]).any()
    assert np.isnan(mug["exact_zero_logits__mug_frame_token_simple"]).any()


def test_mug_retrieval_equals_the_release(mug):
    scores = mug_scores(mug["ret_text"], mug["ret_mask"], mug["ret_video"])
    np.testing.assert_allclose(scores, mug["ret_scores"], rtol=FP32, atol=0)
    figures = rank_figures(untied(released_ranks(scores)))
    assert list(figures.values()) == pytest.approx(list(mug["ret_metrics"]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tau", [1.0, 100.0, 3000.0])  # 3000 leaves the range of one exponential
def test_mug_equals_the_formula(mode, dtype, tau):
    text, mask, video = features(dtype=dtype)
    text[1, 0], video[2] = 0, -video[3]  # an exact zero row; opposite frames
    wanted = mug_plainly(text, mask, video, mode, tau)
    # float32 cosines err by 1e-7 and tau multiplies that in the exponent.
    tolerance = FP64 * tau if dtype == np.float64 else max(FP32, 1e-6 * tau)
    got = mug_scores(text, mask, video, mode=mode, tau=tau)
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance / 10)


def test_rows_out_of_range_take_the_exact_way(monkeypatch):
    text, mask, video = features(dtype=np.float32)
    text[0], video[0] = np.abs(text[0]), np.abs(video[0])
    video[1] = -np.abs(video[1])  # a cosine near 1 and one near -1 in the same block
    text[0, 0] = video[0, 0]
    called = []
    exact = scores._soft_means_exact
    monkeypatch.setattr(scores, "_soft_means_exact", lambda *x: called.append(1) or exact(*x))
    got = mug_scores(text, mask, video)
    assert called
    np.testing.assert_allclose(got, mug_plainly(text, mask, video), rtol=FP32, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("tokens", "columns"), [(1, 1), (7, 9), (16, 8), (10**6, 10**6)])
def test_blocks_do_not_change_scores(monkeypatch, mode, tokens, columns):
    text, mask, video = features(q=11, b=10)
    mask[4] = False  # a text without any token
    wanted = mug_plainly(text, mask, video, mode)
    monkeypatch.setattr(scores, "_BLOCK_TOKENS", tokens)
    monkeypatch.setattr(scores, "_BLOCK_COLUMNS", columns)
    got = mug_scores(text, mask, video, mode=mode)
    if mode == "mug":
        assert np.isnan(got[4]).all()
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


def test_padding_matters_in_one_mode_only():
    text, mask, video = features()
    other = np.where(mask[:, :, None], text, np.flip(text) + 1)
    assert (mug_scores(text, mask, video) == mug_scores(other, mask, video)).all()
    longer = np.pad(text, ((0, 0), (0, 5), (0, 0)), constant_values=3.0)
    padded = mug_scores(longer, np.pad(mask, ((0, 0), (0, 5))), video)
    assert (mug_scores(text, mask, video) == padded).all()
    # A low tau, so that random features do not leave all the weight to one token.
    one, two = (mug_scores(t, mask, video, mode="mug_frame_token", tau=10) for t in (text, other))
    assert np.abs(one - two).max() > 1e-2


def test_a_broken_video_or_text_stays_alone():
    text, mask, video = features()
    mask[:, 0] = True
    wanted = mug_scores(text, mask, video)
    broken = video.copy()
    broken[3, 1, 2] = np.nan
    got = mug_scores(text, mask, broken)
    assert np.isnan(got[:, 3]).all()
    np.testing.assert_allclose(np.delete(got, 3, 1), np.delete(wanted, 3, 1), rtol=FP64)
    text[2, 0, 0] = np.nan
    got = mug_scores(text, mask, video)
    assert np.isnan(got[2]).all()
    np.testing.assert_allclose(np.delete(got, 2, 0), np.delete(wanted, 2, 0), rtol=FP64)


def peak_mib(text, mask, video, **options) -> float:
    tracemalloc.start()
    try:
        mug_scores(text, mask, video, **options)
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("q", "b", "length", "t", "e"),
    [(30, 80, 32, 32, 16), (100, 400, 77, 1, 16), (15, 15, 77, 64, 64), (50, 60, 16, 8, 512)],
)
def test_memory_stays_in_its_limit(mode, q, b, length, t, e):
    text, mask, video = features(q, b, length, t, e, dtype=np.float32)
    output = q * b * 4 / 2**20
    for limit in (2, 8):
        assert peak_mib(text, mask, video, mode=mode, memory_mb=limit) < limit + output + 0.5


def test_zero_vector_gives_nan_as_in_the_release(recwarn):
    scores = cosine_scores(np.array([[0.0, 0], [1, 0]]), np.array([[2.0, 0], [0, 3]]))
    np.testing.assert_array_equal(scores, np.array([[np.nan, np.nan], [1, 0]], dtype=np.float32))
    assert np.isnan(normalize(np.zeros(3))).all()
    assert not recwarn.list


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(text_tokens=np.ones((2, 3))), r"\[2, 3\], float64; need floats with 3 axes"),
        (dict(video_frames=np.ones((7, 4, 5))), r"\[5, 9, 12\] and video \[7, 4, 5\]"),
        (dict(video_frames=np.ones((0, 4, 12))), r"\[0, 4, 12\]"),
        (dict(text_tokens=np.ones((5, 9, 12), dtype=int)), "int64; need floats"),
        (dict(mask=np.ones((9, 5))), r"mask has shape \[9, 5\]"),
        (dict(mask=np.full((5, 9), 2)), "other values than 0 and 1"),
        (dict(mode="mug_frame_tokens"), "did you mean 'mug_frame_token'"),
        (dict(tau=0), "tau is 0"),
        (dict(tau=float("nan")), "tau is nan"),
        (dict(memory_mb=0), "memory_mb is 0"),
    ],
)
def test_wrong_mug_input_is_told(change, message):
    text, mask, video = features()
    given = dict(text_tokens=text, mask=mask, video_frames=video) | change
    with pytest.raises(InputError, match=message):
        mug_scores(**given)


def test_wrong_input_is_told():
    with pytest.raises(InputError, match="differ in the last axis"):
        cosine_scores(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(InputError, match="need floats"):
        normalize(["a"])
