"""The rewritten network equals the reference in fp64, in every form."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stan_infer.checkpoints.presets import preset
from stan_infer.network.fold import fold_text, fold_video
from stan_infer.network.model import Stan, init_random
from stan_infer.network.torch_ops import encode_branch, encode_text, encode_trunk, encode_video
from tests.conftest import GOLDEN_CASES, clips, relative_error, tiny_config
from tests.grids import pairwise
from tests.network.test_model import load_golden

EXACT = 1e-13  # fp64: rewrites change the order of sums only; 2e-15 is measured
FP32 = 1e-5
SHAPES = ((1, 1), (2, 3), (2, 8), (1, 12))
# Share of the reference's FLOPs that is gone at T = 12 and at T = 1, rounded down.
SAVED = {"stan-b32": (0.074, 0.1265), "stan-b16": (0.074, 0.128), "stan-l14": (0.044, 0.0765)}


def fp64_model(outliers: bool = False, **changes) -> Stan:
    """Random weights in fp64; outliers: two channels of the stream 30 times the others'."""
    model = init_random(Stan(tiny_config(**changes)), seed=2).double().eval()
    if outliers:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith((".ln_1.weight", ".ln_2.weight", ".ln.weight", "ln_pre.weight")):
                    p[5], p[11] = 30 * p[5], -30 * p[11]
                if name.endswith("c_proj.bias"):
                    p[5] += 30
    return model.requires_grad_(False)


def pixels(b: int, t: int) -> Tensor:
    return torch.from_numpy(clips(b, t, 16, seed=10 * b + t))


def normalised(model: Stan, video: Tensor) -> Tensor:
    """As Stan.normalize, but without rounding to float32."""
    mean, std = (
        torch.tensor(v, dtype=torch.float64) for v in (model.config.mean, model.config.std)
    )
    return ((video.double() - mean) / std).permute(0, 1, 4, 2, 3)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "outliers"])
def model(request):
    return fp64_model(request.param)


@pairwise(
    branch=["selfattn", "conv"],
    activation=["quick_gelu", "gelu"],
    outliers=[False, True],
    base2=[False, True],
)
def test_all_together(branch, activation, outliers, base2):
    model = fp64_model(outliers, branch=branch, activation=activation)
    w = fold_video(model, base2=base2)
    assert not w.trunk[0].qkv.bias[32:].any()  # K's is gone, V's is in the output's
    for b, t in SHAPES:
        wanted = model.encode_video(normalised(model, pixels(b, t)))
        mean, frames = encode_video(w, pixels(b, t))
        assert relative_error(frames, wanted) < EXACT
        assert relative_error(mean, wanted.mean(1)) < EXACT


def test_all_together_where_every_trunk_layer_has_a_branch_layer():
    model = fp64_model(branch_layers=3)
    wanted = model.encode_video(normalised(model, pixels(2, 5)))
    assert relative_error(encode_video(fold_video(model), pixels(2, 5))[1], wanted) < EXACT


@pairwise(branch=["selfattn", "conv"], input=["uint8", "float"], outliers=[False, True])
def test_windows_share_the_trunk_rows_of_their_frames(branch, input, outliers):
    model = fp64_model(outliers, branch=branch)
    video = pixels(1, 9) if input == "uint8" else normalised(model, pixels(1, 9))
    w, dice = fold_video(model, input=input), np.random.default_rng(0)
    parts = [encode_trunk(w, part) for part in video[0].split([1, 5, 3])]
    rows = [torch.cat(taps) for taps in zip(*parts, strict=True)]  # K of [9, N, D]
    assert len(rows) == model.config.branch_layers
    for t in (1, 3, 8):
        starts = dice.integers(0, 9 - t + 1, 2)
        windows = torch.stack([video[0, i : i + t] for i in starts])
        mean, frames = encode_branch(w, [torch.stack([x[i : i + t] for i in starts]) for x in rows])
        wanted = model.encode_video(normalised(model, windows) if input == "uint8" else windows)
        assert relative_error(frames, wanted) < EXACT
        assert relative_error(mean, wanted.mean(1)) < EXACT


def test_float_input(model):
    floats = normalised(model, pixels(2, 3))
    got = encode_video(fold_video(model, input="float"), floats)[1]
    assert relative_error(got, model.encode_video(floats)) < EXACT


def test_text(model):
    ids = torch.from_numpy(np.random.default_rng(0).integers(1, 126, (3, 12)))
    ids[:, 5] = 127
    end, tokens = encode_text(fold_text(model), ids)
    assert relative_error(tokens, model.encode_text_tokens(ids)) < EXACT
    assert relative_error(end, model.encode_text(ids)) < EXACT


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_equals_the_authors(golden, name):
    model, arrays = load_golden(golden, name)
    w32, w64 = fold_video(model), fold_video(model.double())
    for key in (k for k in arrays if k.endswith("_frames_u8")):
        video = torch.from_numpy(arrays[key]).permute(0, 1, 3, 4, 2).contiguous()
        short = key.replace("_frames_u8", "_video")
        assert relative_error(encode_video(w32, video)[0], arrays[short]) < FP32
        frames = encode_video(w64, video)[1]
        # The authors normalise in float32 before their fp64 run; so the pixels differ by that.
        assert relative_error(frames, arrays[f"{short}_frames_fp64"]) < 1e-6


def test_fp32(tiny_model):
    w = fold_video(tiny_model)
    for b, t in (*SHAPES, (1, 64)):
        wanted = tiny_model.encode_video(pixels(b, t))
        assert relative_error(encode_video(w, pixels(b, t))[1], wanted) < FP32


def test_folding_leaves_the_model_alone():
    model = fp64_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fold_video(model), fold_text(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", SAVED)
def test_flops_saved(name):
    """Counted by torch on tensors without memory."""
    with torch.device("meta"):
        model = Stan(preset(name)).eval().requires_grad_(False)
        weights, side = fold_video(model), model.config.image_size
        for t, wanted in zip((12, 1), SAVED[name], strict=True):
            video = torch.empty(1, t, side, side, 3, dtype=torch.uint8)
            with FlopCounterMode(display=False) as before:
                model.encode_video(video)
            with FlopCounterMode(display=False) as after:
                encode_video(weights, video)
            assert 1 - after.get_total_flops() / before.get_total_flops() >= wanted
