"""Figures against the authors' code (golden data) and against torchmetrics, SciPy, scikit-learn."""

import logging
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.errors import InputError
from stan_infer.evaluation.metrics import (
    class_figures,
    dual_softmax,
    paired_interval,
    rank_figures,
    rank_right,
    rank_texts,
    rank_videos,
    released_ranks,
    retrieval_ranks,
    share_interval,
    untied,
)
from stan_infer.scores import cosine_scores

METRICS = ["R@1", "R@5", "R@10", "MdR", "MnR"]
SAME = 1e-12  # both sides count; only the mean of the counts is rounded


@pytest.fixture(scope="module")
def metrics(golden):
    return np.load(golden / "metrics.npz")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.integers(1, 40))
def test_expected_ranks_are_those_of_scipy(seed, rows, columns, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (rows, columns)) / np.float64(levels)  # with many ties
    right = rng.integers(0, columns, rows)
    theirs = scipy.stats.rankdata(-scores, method="average", axis=1)
    assert (rank_right(scores, right).ranks == theirs[np.arange(rows), right]).all()


@pytest.mark.parametrize("seed", range(5))
def test_recalls_are_those_of_torchmetrics(seed):
    """Without ties: torchmetrics breaks them by place."""
    import torch
    from torchmetrics.retrieval import RetrievalMRR, RetrievalRecall

    scores = np.random.default_rng(seed).permuted(np.arange(40.0 * 50).reshape(40, 50), axis=1)
    right = np.random.default_rng(seed + 9).integers(0, 50, 40)
    target = torch.from_numpy(np.arange(50) == right[:, None])
    query = torch.arange(40)[:, None].expand(40, 50)
    found = rank_figures(rank_right(scores, right))
    for k in (1, 5, 10):
        theirs = RetrievalRecall(top_k=k)(torch.from_numpy(scores), target, indexes=query)
        assert found[f"R@{k}"] == pytest.approx(100 * float(theirs), rel=1e-6)  # theirs is fp32
    mrr = RetrievalMRR()(torch.from_numpy(scores), target, indexes=query)
    assert np.mean(1 / rank_right(scores, right).ranks) == pytest.approx(float(mrr), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.standard_normal((300, 12)), rng.integers(0, 12, 300)
    found, hits = class_figures(scores, labels)
    classes = np.arange(12)
    for k in (1, 5):
        theirs = sklearn.metrics.top_k_accuracy_score(labels, scores, k=k, labels=classes)
        assert found[f"top-{k}"] == pytest.approx(100 * theirs, rel=SAME)
        assert hits[f"top-{k}"].mean() == pytest.approx(theirs, rel=SAME)
    theirs = sklearn.metrics.balanced_accuracy_score(labels, scores.argmax(1))
    assert found["mean class"] == pytest.approx(100 * theirs, rel=SAME)


def test_ties_count_with_the_chance_of_a_random_order():
    """By all orders: scores with noise too small to change any other order."""
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 4, (60, 12)) / 4.0
    right = rng.integers(0, 12, 60)
    drawn = [rank_right(scores + 1e-6 * rng.random(scores.shape), right).ranks for _ in range(4000)]
    ranking = rank_right(scores, right)
    np.testing.assert_allclose(ranking.ranks, np.mean(drawn, 0), atol=0.25)
    for k in (1, 5, 10):
        np.testing.assert_allclose(ranking.recall(k), np.mean(np.array(drawn) <= k, 0), atol=0.04)
    two, nine = np.zeros((1, 2)), np.zeros((1, 9))
    assert rank_right(two, [0]).recall(1) == 0.5
    assert rank_right(nine, [0]).recall(5) == pytest.approx(5 / 9)
    assert class_figures(nine, [3])[0]["top-5"] == pytest.approx(500 / 9)
    back = retrieval_ranks(np.ones((2, 2)), [0, 1])["video_to_text"]
    assert back.recall(1).tolist() == [0.5, 0.5]


def test_a_video_with_several_texts_asks_for_the_best_of_them():
    # Videos 0 and 1 have two texts each; video 2 has none.
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0], [0.1, 0.2, 0.9]])
    ranks = retrieval_ranks(scores, [0, 0, 1, 1])
    assert ranks["text_to_video"].ranks.tolist() == [1, 2, 1, 2]
    # Video 0: its best 0.9 against 0.3. Video 1: its best 0.7 against 0.8.
    assert ranks["video_to_text"].ranks.tolist() == [1, 2]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_without_ties_both_counts_agree_whatever_the_order_of_the_texts(seed, n):
    rng = np.random.default_rng(seed)
    scores, owner = rng.standard_normal((n, n)), rng.permutation(n)
    ours, theirs = (retrieval_ranks(scores, owner, ties=t) for t in ("expected", "authors"))
    for name in ours:
        assert sorted(ours[name].ranks) == sorted(theirs[name].ranks)


def test_nan_is_last_or_drops_out_and_is_told(caplog):
    scores = np.eye(4)
    scores[2] = np.nan
    with caplog.at_level(logging.WARNING):
        assert retrieval_ranks(scores, np.arange(4))["text_to_video"].ranks.tolist() == [
            1,
            1,
            2.5,
            1,
        ]
    assert "1 texts have NaN for their own video and count as ranked last" in caplog.text
    scores = np.eye(4)
    scores[2, 2] = np.nan
    assert rank_right(scores, np.arange(4)).ranks.tolist() == [1, 1, 4, 1]
    assert len(retrieval_ranks(scores, np.arange(4), ties="authors")["text_to_video"].better) == 3
    with pytest.raises(InputError, match="all NaN"):
        retrieval_ranks(np.full((2, 2), np.nan), [0, 1])


def test_dual_softmax_is_the_product_with_the_softmax_over_questions():
    s = np.random.default_rng(0).uniform(-1, 1, (4, 5))
    to_video, to_text = (dual_softmax(s, 0.1, axis) for axis in (0, 1))
    np.testing.assert_allclose(to_video, s * scipy.special.softmax(s / 0.1, axis=0), rtol=SAME)
    np.testing.assert_allclose(to_text, s * scipy.special.softmax(s / 0.1, axis=1), rtol=SAME)


def test_dual_softmax_takes_less_than_three_score_matrices():
    """Whatever the count of ties: the result in float64 is two of them, ranks go block by block."""
    scores = np.random.default_rng(0).uniform(-1, 1, (2400, 2000)).astype(np.float32)
    owner = np.arange(2400) % 2000
    square, shuffled = scores[:2000], np.random.default_rng(1).permutation(2000)
    for rank, axis in ((rank_videos, 0), (rank_texts, 1)):
        for matrix, owners, ties in ((scores, owner, "expected"), (square, shuffled, "authors")):
            tracemalloc.start()
            rank(dual_softmax(matrix, 0.01, axis), owners, ties=ties)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert 2 * matrix.nbytes < peak < 3 * matrix.nbytes, (rank, ties)


def test_a_query_without_a_score_changes_no_other_in_the_dual_softmax():
    s = np.random.default_rng(0).uniform(-1, 1, (4, 5))
    s[2] = np.nan
    for axis, kept in ((0, np.arange(4) != 2), (1, np.arange(4) != 2)):
        found = dual_softmax(s, 0.1, axis)
        assert np.isnan(found[2]).all()
        np.testing.assert_allclose(found[kept], dual_softmax(s[kept], 0.1, axis), rtol=SAME)


def test_dual_softmax_helps_where_one_video_attracts_every_text():
    """A hub: video 0 is near all texts; its softmax over texts spreads and takes it back."""
    s = np.full((4, 4), 0.1) + 0.4 * np.eye(4)
    s[:, 0] = 0.55
    s[0, 0] = 0.6
    plain = rank_figures(rank_right(s, np.arange(4)))["R@1"]
    dual = rank_figures(rank_right(dual_softmax(s, 0.01, 0), np.arange(4)))["R@1"]
    assert (plain, dual) == (25, 100)


@pytest.mark.parametrize("right, count", [(10, 10), (0, 7), (9, 10), (1740, 2000), (1, 1)])
def test_the_interval_of_a_share_is_that_of_scipy(right, count):
    theirs = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    found = share_interval([1.0] * right + [0.0] * (count - right))
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("case", ["plain", "ties", "blocks"])
def test_metrics_equal_the_release(metrics, case):
    sim = metrics[f"{case}_sim"]
    got = cosine_scores(metrics[f"{case}_text"], metrics[f"{case}_video"])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, sim, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(released_ranks(sim), metrics[f"{case}_ranks0"])
    found = rank_figures(untied(released_ranks(sim)))
    assert list(found) == METRICS
    assert list(found.values()) == pytest.approx(list(metrics[f"{case}_metrics"]), rel=1e-12)


def recognition_accuracy(video, text, labels):
    """Top-1 and top-5 as the release counts them, between 0 and 1."""
    figures, _ = class_figures(cosine_scores(video, text), labels, ties="authors")
    return figures["top-1"] / 100, figures["top-5"] / 100


def test_recognition_equals_the_release_but_for_ties(metrics):
    """Classes 3 and 7 are equal; where that decides, the release's figure depends on the CPU."""
    video, text, label = (metrics[f"recog_{name}"] for name in ("video", "text", "label"))
    scores = cosine_scores(video, text)
    right = np.take_along_axis(scores, label[:, None].astype(np.int64), axis=1)
    better, equal = (scores > right).sum(1), (scores == right).sum(1) - 1
    for k, released, ours in zip(
        (1, 5), metrics["recog_acc"], recognition_accuracy(video, text, label), strict=True
    ):
        worst, best = np.mean(better + equal < k), np.mean(better < k)
        assert worst < best, "the golden case has ties that matter"
        assert worst <= released <= best
        assert worst <= ours <= best
    untied = equal == 0
    order = np.argsort(scores[untied], axis=1)[:, ::-1]  # the release's line
    wanted = [(order[:, :k] == label[untied, None]).any(1).mean() for k in (1, 5)]
    assert recognition_accuracy(video[untied], text, label[untied]) == pytest.approx(wanted)


def test_recognition_ties_go_to_the_higher_class():
    video, text = np.ones((1, 3)), np.ones((7, 3))
    assert recognition_accuracy(video, text, [6]) == (1.0, 1.0)
    assert recognition_accuracy(video, text, [5]) == (0.0, 1.0)
    assert recognition_accuracy(video, text, [1]) == (0.0, 0.0)


def test_a_class_without_a_score_is_no_hit():
    scores = np.array([[0.1, np.nan, 0.3]])
    for ties in ("expected", "authors"):
        figures, _ = class_figures(scores, [1], ties=ties)
        assert (figures["top-1"], figures["top-5"]) == (0, 100), ties


def test_wrong_input_is_told():
    with pytest.raises(InputError, match=r"\[2, 3\]; the release's count of ties needs \[N, N\]"):
        released_ranks(np.ones((2, 3)))
    with pytest.raises(InputError, match="did you mean 'authors'"):
        retrieval_ranks(np.eye(2), [0, 1], ties="author")
    with pytest.raises(InputError, match="2 texts describe 1 of 2 videos"):
        retrieval_ranks(np.eye(2), [0, 0], ties="authors")
    with pytest.raises(InputError, match="temperature is 0"):
        dual_softmax(np.eye(2), 0, 0)
    for labels, message in (
        ([0, 5], "allowed are 0 to 1"),
        ([0], "need 2 ints"),
        ([0.0, 1], "2 ints"),
    ):
        with pytest.raises(InputError, match=message):
            recognition_accuracy(np.eye(2), np.eye(2), labels)


def test_paired_intervals_are_honest_for_few_answers():
    """Coverage of the true difference, over random tables; a bootstrap gives 0 to 0 for none."""
    low, high = paired_interval(0, 0, 10)
    assert low == pytest.approx(-high) and 0.27 < high < 0.28  # z^2 / (n + z^2)
    assert paired_interval(0, 0, 1)[1] > 0.75
    assert paired_interval(5, 0, 5)[1] == 1.0 and paired_interval(0, 5, 5)[0] == -1.0
    rng = np.random.default_rng(0)
    for n, lost, gained in ((10, 0.1, 0.05), (40, 0.02, 0.02), (200, 0.05, 0.01)):
        tables = rng.multinomial(n, (lost, gained, 1 - lost - gained), 400)
        found = [paired_interval(int(b), int(c), n) for b, c, _ in tables]
        held = [low <= lost - gained <= high for low, high in found]
        assert np.mean(held) > 0.93, (n, np.mean(held))
