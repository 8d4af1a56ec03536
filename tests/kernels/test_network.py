"""The whole rewritten network on kernels: its numbers."""

import pytest
import torch

from stan_infer.errors import InputError
from stan_infer.network.fold import fold_text, fold_video
from stan_infer.network.fused import text_tower, video_tower
from stan_infer.network.kernel_ops import KernelOps
from stan_infer.network.kernel_weights import Fp8Linear, prepare
from stan_infer.network.model import Stan, init_random
from stan_infer.quantisation.observe import activation_scales
from tests.conftest import clips, relative_error, tiny_config
from tests.grids import pairwise
from tests.kernels.inputs import DEVICE

CHOICES = [frozenset(), frozenset({"trunk", "linear"}), frozenset({"library"})]
# Of the largest value: fp16 and bf16 of the reference in torch itself measure 2e-3 and 2e-2.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


@pytest.fixture(autouse=True)
def poisoned():
    """Not here: the library's own operations use torch.empty."""


@pytest.fixture(autouse=True)
def on_device():
    """Not here: models are made on the CPU, as those of users."""


def tiny(**changes) -> Stan:
    return init_random(Stan(tiny_config(**changes)), seed=2).eval().requires_grad_(False)


def run(model, b, t, kernels=frozenset(), dtype=torch.float32, scales=None):
    weights = prepare(fold_video(model, dtype=dtype, base2=True), DEVICE, scales)
    counters = torch.zeros(b * model.config.heads, dtype=torch.int32, device=DEVICE)
    ops = KernelOps(b, t, counters, kernels=kernels)
    mean, frames = video_tower(ops, weights, torch.from_numpy(clips(b, t, 16)).to(DEVICE))
    assert mean.dtype == frames.dtype == torch.float32 and not counters.any()
    return mean.cpu(), frames.cpu()


def check(model, b, t, kernels=frozenset(), dtype=torch.float32):
    mean, frames = run(model, b, t, kernels, dtype)
    wanted = model.encode_video(torch.from_numpy(clips(b, t, 16)))
    assert relative_error(frames, wanted) < TOLERANCE[dtype]
    assert relative_error(mean, wanted.mean(1)) < TOLERANCE[dtype]


@pairwise(
    changes=[{}, {"branch": "conv"}, {"activation": "gelu"}, {"branch_layers": 3}],
    kernels=CHOICES,
    b_t=[(1, 1), (2, 3)],
)
def test_equals_the_reference(changes, kernels, b_t):
    check(tiny(**changes), *b_t, kernels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    check(tiny(), 2, 5, dtype=dtype)


def test_text_tower(tiny_model):
    weights = prepare(fold_text(tiny_model, base2=True), "cpu")
    ids = torch.randint(1, 126, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 5] = 127
    ops = KernelOps(3, 1, torch.zeros(0, dtype=torch.int32))
    end, tokens = text_tower(ops, weights, ids)
    assert relative_error(tokens, tiny_model.encode_text_tokens(ids)) < 1e-5
    assert relative_error(end, tiny_model.encode_text(ids)) < 1e-5


def test_fp8():
    model, video = tiny(), torch.from_numpy(clips(2, 5, 16))
    folded = fold_video(model, base2=True)
    scales = activation_scales(folded, video)
    assert len(scales) == 4 * 3 + 2 * 2 + 2 * 4
    weights = prepare(folded, "cpu", scales)
    assert isinstance(weights.trunk[0].fc1, Fp8Linear)
    assert isinstance(weights.branch[0].temporal.qkv, Fp8Linear)
    _, frames = run(model, 2, 5, scales=scales)
    wanted = model.encode_video(video).double()
    cosine = torch.cosine_similarity(frames.double(), wanted, dim=-1)
    assert cosine.min() > 0.995  # 3 bits of fraction in every linear of a tiny network
    assert relative_error(frames, wanted) > 1e-3  # and they were really used


def test_scales_for_another_model_are_refused():
    with pytest.raises(InputError, match="trunk/layer9"):
        prepare(fold_video(tiny()), "cpu", {"video/trunk/layer9/mlp/fc1": 1.0})
