"""The kernels as operations of torch: checked by opcheck, traced, compiled, exported, counted."""

import os

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from stan_infer.kernels.fp8_linear import fp8_linear
from tests.conftest import ROOT, python
from tests.kernels.inputs import kernel_tests

CALLS = [call for module in kernel_tests() for call in module.calls()]
IDS = [f"{i}-{op._opoverload.name().split('::')[1]}" for i, (op, _, _) in enumerate(CALLS)]


@pytest.fixture(autouse=True)
def poisoned():
    """Not here: torch's own checks use torch.empty."""


@pytest.mark.parametrize(("op", "args", "flops"), CALLS, ids=IDS)
def test_opcheck(op, args, flops):
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks += ["test_aot_dispatch_dynamic"]
    if op is fp8_linear:
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
    for a, b in zip(tree_leaves(got), tree_leaves(real), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.device.type == "cuda"


def test_without_a_gpu_the_operations_are_plain_torch():
    """In a process of its own, as kernels are compiled there and not interpreted."""
    code = """
import torch
from stan_infer.kernels.linear import linear, linear_reference
x, w, b = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)
args = (x, w, b, None, None, None, None, "gelu", 1e-5, False, True)
for one, other in zip(linear(*args), linear_reference(*args), strict=True):
    assert torch.equal(one, other)
try:
    linear(x, w[:, :7], b, None, None, None, None, "", 0.0, False, False)
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
    for one, other in zip(tree_leaves(compiled(*args)), tree_leaves(op(*args)), strict=True):
        assert torch.equal(one, other)
