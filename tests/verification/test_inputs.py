"""The clips and texts that towers are compared on: what they show, and how large they are."""

import numpy as np
import pytest

from stan_infer.network.model import Stan, init_random
from stan_infer.verification import inputs
from stan_infer.verification.open import open_side
from tests.conftest import tiny_config
from tests.exported import exported


@pytest.mark.parametrize(
    "config", [{}, {"image_size": 64, "short_side": 64}, {"width": 64, "patch": 4}]
)
def test_nearly_flat_patches_vary_by_thirty_eps(config):
    """Known by computing the rows: eps is 1e-5, so 1e-6 in its place changes them by 1.5 %."""
    model = init_random(Stan(tiny_config(**config)), seed=3).eval().requires_grad_(False)
    patches, size, p = open_side(model).patches(), model.config.image_size, model.config.patch
    ((_, clip),) = inputs.nearly_flat(patches, size, 2, 3)
    assert clip.shape == (2, 3, size, size, 3) and clip.dtype == np.uint8
    grid = clip.reshape(2, 3, size // p, p, size // p, p, 3).swapaxes(3, 4)
    rows = grid.reshape(6, len(patches[1]), -1) @ patches[0].T + patches[1]
    variances = np.sort(rows.var(-1), axis=-1)
    count = min(max(len(patches[1]) // 8, 1), inputs.FLAT_PATCHES)
    # A patch of fewer pixels than channels has no exact solution, and is as flat as it can be.
    most = 5e-4 if 3 * p * p > model.config.width else 0.2
    assert (variances[:, :count] < most).all() and variances[0, 0] > 1e-4
    assert (variances[:, count:] > 0.05).all()  # the others are as always


def test_patches_are_the_same_from_a_checkpoint_and_its_graph(tiny_model, folder):
    for a, b in zip(open_side(tiny_model).patches(), open_side(folder).patches(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert open_side(exported(tiny_model, input="float")).patches() is None


@pytest.mark.parametrize(
    ("frames", "size", "batch", "made"),
    [
        ((1, 64), 224, (1, 32), (32, 2)),
        ((1, 64), 224, (1, 4096), (64, 1)),
        ((12, 12), 224, (1, 32), (5, 12)),
        ((12, 12), 16, (1, 32), (32, 12)),
        ((1, 64), 336, (1, 32), (28, 1)),
        ((1, 1), 224, (1, 32), (32, 1)),
        ((64, 64), 224, (8, 8), (8, 64)),  # no smaller one is allowed
        ((1, 64), 224, (1, 3), None),  # as other batches
    ],
)
def test_the_largest_batch_is_bounded(frames, size, batch, made):
    cases = inputs.largest_batch(frames, size, batch)
    assert [c.shape[:2] for _, c in cases] == ([made] if made else [])
    for _, clips in cases:
        assert clips.nbytes <= inputs.LARGEST_BATCH or clips.shape[0] == batch[0]
        assert len({clip.tobytes() for clip in clips}) == len(clips)


def test_texts_are_of_many_lengths_and_in_a_large_batch():
    cases = dict(inputs.text_cases(tiny_config(), 20, 4096))
    assert {ids.shape[1] for ids in cases.values()} == {2, 5, 12, 20}
    assert max(len(ids) for ids in cases.values()) == inputs.MOST_TEXTS
    assert all(ids.max() == 127 and ids.min() >= 0 for ids in cases.values())
    assert [len(ids) for ids in dict(inputs.text_cases(None, 77, 8)).values()][-1] == 8


def test_no_case_where_no_size_is_shared():
    ranges = {"batch": (3, 2), "frames": (1, 4)}
    assert inputs.video_cases([1], 16, ranges) == []
    assert inputs.video_cases([], 16, {**ranges, "batch": (1, 2)}) == []
