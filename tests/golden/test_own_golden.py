"""The project's own golden set, for clones without the authors' data."""

import copy

import numpy as np
import pytest
import torch

from stan_infer.checkpoints.load import load_model
from stan_infer.scores import cosine_scores, mug_scores
from stan_infer.text.tokenizer import tokenize
from stan_infer.video.clip import sample_indices
from tests.conftest import clips, relative_error
from tests.golden.make import COUNTS, HERE, SETTINGS, TEXTS, token_ids

FP32 = 1e-5
FP64 = 1e-12


@pytest.fixture(scope="module")
def arrays():
    return np.load(HERE / "golden.npz")


@pytest.mark.parametrize("name", ["tiny", "conv"])
def test_features_and_scores(arrays, name):
    model = load_model(HERE / f"{name}.pth", SETTINGS)
    double = copy.deepcopy(model).double()
    video = torch.from_numpy(clips(2, 5, 16, seed=9))
    ids = token_ids(model.config)
    for net, tolerance in ((model, FP32), (double, FP64)):
        frames = net.encode_video(video).numpy()
        text = net.encode_text(torch.from_numpy(ids)).numpy()
        tokens = net.encode_text_tokens(torch.from_numpy(ids)).numpy()
        assert relative_error(frames, arrays[f"{name}_frames"]) < tolerance
        assert relative_error(text, arrays[f"{name}_text"]) < tolerance
        assert relative_error(tokens, arrays[f"{name}_tokens"]) < tolerance
        # Scores are computed in float32 unless the features are float64.
        cosine = cosine_scores(text, frames.mean(1))
        assert relative_error(cosine, arrays[f"{name}_cosine"]) < FP32
        mug = mug_scores(tokens, ids != 0, frames, mode="mug")
        assert relative_error(mug, arrays[f"{name}_mug"]) < tolerance


def test_tokens_and_indices(arrays):
    assert np.array_equal(tokenize(TEXTS, 32, truncation="authors"), arrays["ids_32"])
    assert np.array_equal(tokenize(TEXTS, 32), arrays["ids_32_keep"])
    for n, wanted in zip(COUNTS, arrays["indices"], strict=True):
        assert np.array_equal(sample_indices(n, 12), wanted)


def test_the_set_is_small():
    assert sum(p.stat().st_size for p in HERE.iterdir() if p.is_file()) < 2**20
