"""The kernels as operations of torch: checked by opcheck, traced, compiled, exported, counted."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stan_infer.kernels import (
    branch_merge,
    cls_attention,
    fp8_linear,
    head_rows,
    linear,
    patch_embed,
    spatial_attention,
    temporal_attention,
    temporal_qkv_attention,
)
from stan_infer.network.eight_bits import quantise_weight
from tests.conftest import ROOT, clips, python
from tests.kernels.inputs import DEVICE, Maker

B, T, P, H, D = 2, 3, 4, 2, 32


def calls():
    """Each operation with arguments it takes, and the FLOPs of that call."""
    new = Maker(torch.float32)
    rows, x = B * T * P, new(B * T * P + B, D)
    w, b = new(3 * D, D), new(3 * D)
    w8, scale = quantise_weight(w, "fp8")
    counters = torch.zeros(B * H, dtype=torch.int32, device=DEVICE)
    video = torch.from_numpy(clips(B, T, 16)).to(DEVICE)
    trunk = new(B * T, P + 1, D)
    yield linear.linear, (x, w, b, w.sum(1), None, "silu", 1e-5, True), 2 * len(x) * 3 * D * D
    args = (x, w8, scale, 0.01, b, new(len(x) + 1, 3 * D), "")
    yield fp8_linear.fp8_linear, args, 2 * len(x) * 3 * D * D
    attend = 4 * rows * T * D
    yield temporal_attention.temporal_attention, (new(rows, 3 * D), T, P, H, 0.3), attend
    yield (
        temporal_qkv_attention.temporal_qkv_attention,
        (x, w, b, w.sum(1), B, T, P, H, 0.3, 1e-5),
        6 * rows * D * D + attend,
    )
    spatial = 4 * B * T * (P + 1) ** 2 * D
    for shared, n in ((True, rows + B), (False, rows + B * T)):
        args = (new(n, 3 * D), counters, B, T, H, 0.3, shared)
        yield spatial_attention.spatial_attention, args, spatial
    u = new(B, H, D)
    yield cls_attention.cls_attention, (u, x, B, T, 0.3, 1e-5), 4 * H * len(x) * D
    args = (video, new(D, 192), new(P, D), new(D), new(D), new(D), 8, 1e-5)
    yield patch_embed.patch_embed, args, 2 * rows * 192 * D
    yield branch_merge.branch_merge, (trunk, x, None, None, None, B), 0
    args = (trunk, None, new(P, D), new(64, D), new(D), B)
    yield branch_merge.branch_merge, args, 0
    yield head_rows.head_rows, (trunk, new(B, D), 1e-5), 0


CALLS = list(calls())
IDS = [f"{i}-{op._opoverload.name().split('::')[1]}" for i, (op, _, _) in enumerate(CALLS)]


@pytest.fixture(autouse=True)
def poisoned():
    """Not here: torch's own checks use torch.empty."""


@pytest.mark.parametrize(("op", "args", "flops"), CALLS, ids=IDS)
def test_opcheck(op, args, flops):
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks += ["test_aot_dispatch_dynamic"]
    if op is fp8_linear.fp8_linear:
        checks.remove("test_schema")  # torch cannot compare 8-bit floats on a CPU
    torch.library.opcheck(op, args, test_utils=checks)


@pytest.mark.parametrize(("op", "args", "flops"), CALLS, ids=IDS)
def test_flops_are_counted(op, args, flops):
    with FlopCounterMode(display=False) as counter:
        op(*args)
    assert counter.get_total_flops() == flops


@pytest.mark.parametrize(("op", "args", "flops"), CALLS, ids=IDS)
def test_shapes_on_a_gpu_that_is_not_here(op, args, flops):
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = op(*args)
    with FakeTensorMode():
        moved = [
            torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="cuda")
            if isinstance(a, torch.Tensor)
            else a
            for a in args
        ]
        got = op(*moved)
    assert got.shape == real.shape and got.dtype == real.dtype and got.device.type == "cuda"


def test_without_a_gpu_the_operations_are_plain_torch():
    """In a process of its own, as kernels are compiled there and not interpreted."""
    code = """
import torch
from stan_infer.kernels.linear import linear, linear_reference
x, w, b = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)
args = (x, w, b, w.sum(1), None, "gelu", 1e-5, False)
assert torch.equal(linear(*args), linear_reference(*args))
try:
    linear(x, w[:, :7], b, None, None, "", 0.0, False)
except ValueError as e:
    print(e)
"""
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    done = python("-c", code, env=env, cwd=ROOT)
    assert "weight has 7 columns, 8 were expected" in done.stdout


@pytest.mark.parametrize(("op", "args", "flops"), CALLS[:4], ids=IDS[:4])
def test_torch_compile_keeps_the_operation(op, args, flops):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *values: op(*values), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*args), op(*args))
