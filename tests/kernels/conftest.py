"""Every test of this folder: tensors made where the kernels run, allocations poisoned."""

import pytest
import torch

from stan_infer.kernels.tiles import INTERPRETED
from tests.kernels.inputs import DEVICE, GUARD, guards


def pytest_collection_modifyitems(items):
    """With TRITON_INTERPRET=0 these tests bear the mark `gpu`."""
    for item in items:
        if "tests/kernels/" in item.path.as_posix() and not INTERPRETED:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET=0 needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def on_device():
    """Tensors are made where the kernels run."""
    with torch.device(DEVICE):
        torch.empty(0)  # torch notes its constructors at the first use, before one is replaced
        yield


@pytest.fixture(autouse=True)
def poisoned(monkeypatch, on_device):
    """torch.empty gives NaN, guarded behind: what is not written shows, and what is beyond."""
    empty = torch.empty
    guards.clear()

    def full_of_nan(*args, **kwargs):
        made = empty(*args, **kwargs)
        if not made.is_floating_point():
            return made
        buffer = empty(made.numel() + 4096, dtype=made.dtype, device=made.device)
        buffer[: made.numel()] = float("nan")
        buffer[made.numel() :] = GUARD
        guards.append(buffer[made.numel() :])
        return buffer[: made.numel()].view(made.shape)

    monkeypatch.setattr(torch, "empty", full_of_nan)
