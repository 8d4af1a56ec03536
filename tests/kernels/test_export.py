"""The network on our operations as a torch.export package: loads and runs where there is no GPU."""

import os

import numpy as np
import pytest

from tests.conftest import ROOT, clips, python, relative_error

EXPORT = """
import sys
import torch
from stan_infer.network.fold import fold_video
from stan_infer.network.fused import video_tower
from stan_infer.network.kernel_ops import KernelOps
from stan_infer.network.kernel_weights import prepare
from stan_infer.network.model import Stan, init_random
from tests.conftest import tiny_config

model = init_random(Stan(tiny_config()), seed=1).eval().requires_grad_(False)
weights = prepare(fold_video(model, base2=True), "cpu")


class Video(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counters", torch.zeros(64 * model.config.heads, dtype=torch.int32))

    def forward(self, video):
        ops = KernelOps(video.shape[0], video.shape[1], self.counters)
        return video_tower(ops, weights, video)


batch = torch.export.Dim("batch", min=2, max=64)
program = torch.export.export(
    Video(), (torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8),), dynamic_shapes=[{0: batch}]
)
names = [n.target.name() for n in program.graph.nodes if hasattr(n.target, "name")]
assert any(n.startswith("stan_infer::temporal_qkv_attention") for n in names), names
torch.export.save(program, sys.argv[1])
"""
LOAD = """
import sys
import numpy as np
import torch
import stan_infer.network.kernel_ops  # registers the operations
program = torch.export.load(sys.argv[1]).module()
video = torch.from_numpy(np.load(sys.argv[2]))
np.savez(sys.argv[3], *program(video))
"""


@pytest.fixture(autouse=True)
def poisoned():
    """Not here: other processes run."""


def test_package(tmp_path, tiny_model):
    video = clips(5, 3, 16)
    np.save(tmp_path / "video.npy", video)
    options = {"cwd": ROOT, "env": {**os.environ, "TRITON_INTERPRET": "0"}}
    pt2, npy, npz = (tmp_path / name for name in ("video.pt2", "video.npy", "out.npz"))
    python("-c", EXPORT, pt2, **options)
    python("-c", LOAD, pt2, npy, npz, **options)
    import torch

    found = np.load(npz)
    wanted = tiny_model.encode_video(torch.from_numpy(video))
    assert relative_error(found["arr_1"], wanted) < 1e-5
    assert relative_error(found["arr_0"], wanted.mean(1)) < 1e-5
