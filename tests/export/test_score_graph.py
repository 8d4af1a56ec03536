"""score.onnx computes scores.mug_scores, NaN included."""

import numpy as np
import onnx
import pytest

from stan_infer.engines.ort_session import inference_session
from stan_infer.export.score_graph import write_mug_score
from stan_infer.scores import mug_scores

CLOSE = 1e-5  # of scores up to 1; fp32 with tau 100
MODES = ("mug", "mug_frame_token")


def run(path, tokens, ids, frames, mode):
    """Scores of a graph that is written for these inputs."""
    write_mug_score(path, embed_dim=tokens.shape[2], mode=mode, tau=100.0, opset=20)
    feeds = {"token_embeds": tokens, "input_ids": ids, "frame_embeds": frames}
    return inference_session(path).run(["scores"], feeds)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("opset", [18, 20, 23, 25])
def test_any_sizes_in_one_session(tmp_path, mode, opset):
    path = tmp_path / "score.onnx"
    write_mug_score(path, embed_dim=24, mode=mode, tau=100.0, opset=opset)
    onnx.checker.check_model(str(path), full_check=True)
    session = inference_session(path)
    rng = np.random.default_rng(0)
    for q, length, b, t in ((1, 3, 1, 1), (4, 7, 3, 5), (2, 32, 6, 12), (5, 2, 1, 64)):
        tokens = rng.standard_normal((q, length, 24), np.float32)
        frames = rng.standard_normal((b, t, 24), np.float32)
        ids = rng.integers(1, 9, (q, length)).astype(np.int32)
        ids[:, length // 2 + 1 :] = 0
        wanted = mug_scores(tokens, ids != 0, frames, mode=mode)
        feeds = {"token_embeds": tokens, "input_ids": ids, "frame_embeds": frames}
        (got,) = session.run(["scores"], feeds)
        assert np.abs(got - wanted).max() < CLOSE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("where", ["padding", "token", "frame", "all padding"])
def test_not_a_number_stays_where_the_product_has_it(tmp_path, mode, value, where):
    rng = np.random.default_rng(2)
    tokens = rng.standard_normal((3, 6, 8), np.float32)
    frames = rng.standard_normal((4, 5, 8), np.float32)
    ids = np.ones((3, 6), np.int32)
    ids[:, 4:] = 0
    if where == "all padding":
        ids[1] = 0
    row = {"frame": frames[2, 1], "token": tokens[1, 0]}.get(where, tokens[1, 5])
    row[:] = value
    wanted = mug_scores(tokens, ids != 0, frames, mode=mode)
    if (mode, where) == ("mug", "padding"):
        assert np.isfinite(wanted).all()
    got = run(tmp_path / "score.onnx", tokens, ids, frames, mode)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE, equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
def test_equals_the_authors(golden, tmp_path, mode):
    arrays = np.load(golden / "mug.npz")
    name = {"mug": "mug_frame_token_simple"}.get(mode, mode)
    cases = [k.split("__")[0] for k in arrays if k.endswith(f"__{name}")]
    assert len(cases) >= 5
    for case in cases:
        tokens, frames, mask = (arrays[f"{case}_{k}"] for k in ("text", "video", "mask"))
        got = run(tmp_path / f"{case}.onnx", tokens, mask.astype(np.int32), frames, mode)
        wanted = arrays[f"{case}__{name}"]
        assert np.array_equal(np.isnan(got), np.isnan(wanted)), case
        assert np.nanmax(np.abs(got - wanted), initial=0) < CLOSE, case
