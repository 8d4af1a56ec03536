"""python -m benchmarks.launches: count launches, bytes and FLOPs of the network on our kernels.

The network runs on fake CUDA tensors, so no GPU is needed. Every operation except a view counts as
one launch, or two (TWICE), and moves its operands and its result once. Torch's attention counts as
one launch, as it is one on a GPU that has FlashAttention. The floor of a call (its roofline) is the
longer of the times for its FLOPs and for its bytes at the rates of a GPU's data sheet: computed,
not measured. Writes benchmarks/results/launches.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.record import RESULTS
from stan_infer.checkpoints.presets import preset
from stan_infer.network.fold import fold_video
from stan_infer.network.fused import video_tower
from stan_infer.network.kernel_ops import KernelOps
from stan_infer.network.kernel_weights import prepare
from stan_infer.network.model import Stan

PATH = RESULTS / "launches.jsonl"
SHAPES = [("stan-b32", 1, 12), ("stan-b16", 1, 12), ("stan-b16", 8, 12), ("stan-l14", 8, 12)]
# bf16 GEMM without sparsity (TFLOP/s), memory (TB/s): NVIDIA's H100 SXM data sheet.
H100 = (989.4, 3.35)
# Operations whose launcher starts two kernels.
TWICE = {"stan_infer::patch_embed", "stan_infer::cls_attention"}
# Operations that allocate memory or rename it: no kernel runs.
FREE = {"aten::empty", "aten::detach", "aten::alias", "aten::_unsafe_view", "aten::lift_fresh"}


@dataclasses.dataclass
class Launches:
    """Counts of one forward pass of the video tower."""

    by_operation: Counter[str] = dataclasses.field(default_factory=Counter)
    bytes_by_operation: Counter[str] = dataclasses.field(default_factory=Counter)
    flops: int = 0
    floor_ms: float = 0.0  # on H100's data sheet, one call after the other

    @property
    def total(self) -> int:
        """Kernels launched."""
        return sum(self.by_operation.values())

    @property
    def bytes_moved(self) -> int:
        """Operands and results, each once."""
        return sum(self.bytes_by_operation.values())


class _Counter(TorchDispatchMode):
    def __init__(self, found: Launches) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().split(".")[0]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        # `flatten` and the like count as views where they did not copy.
        shared = func.is_view and {_storage(t) for t in made} <= {_storage(t) for t in given}
        if not (shared or name in FREE or name.startswith("prim::")):
            self._found.by_operation[name] += 2 if name in TWICE else 1
            tensors = [*given, *made]
            moved = sum(_bytes(t) for t in tensors)
            self._found.bytes_by_operation[name] += moved
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
            self._found.floor_ms += max(flops / H100[0], moved / H100[1]) / 1e9
        return out


def _storage(t: torch.Tensor) -> int:
    return t.untyped_storage()._cdata


def _bytes(t: torch.Tensor) -> int:
    """Bytes of a tensor's elements; broadcast ones count once."""
    own = [n for n, stride in zip(t.shape, t.stride(), strict=True) if stride]
    return int(torch.Size(own).numel()) * t.element_size()


def count_launches(
    name: str,
    *,
    batch: int,
    frames: int,
    kernels: frozenset[str] = frozenset(),
    family: str = "sm90",
) -> Launches:
    """Count one forward pass of a preset in bf16; kernels: see KernelOps."""
    found = Launches()
    with FakeTensorMode(), torch.inference_mode():
        model = Stan(preset(name)).eval().requires_grad_(False)
        weights = prepare(fold_video(model, dtype=torch.bfloat16, base2=True), "cuda")
        side, heads = model.config.image_size, model.config.heads
        video = torch.empty(batch, frames, side, side, 3, dtype=torch.uint8, device="cuda")
        counters = torch.zeros(batch * heads, dtype=torch.int32, device="cuda")
        ops = KernelOps(batch, frames, counters, kernels=kernels, family=family)
        with FlopCounterMode(display=False) as flops, _Counter(found):
            video_tower(ops, weights, video)
    found.flops = flops.get_total_flops()
    return found


def main() -> None:
    """Count the presets and record."""
    rows = []
    for name, batch, frames in SHAPES:
        found = count_launches(name, batch=batch, frames=frames, kernels=frozenset({"trunk"}))
        head = {"kind": "launches", "model": name, "batch": batch, "frames": frames}
        sizes = {"gflop": found.flops / 1e9, "mb": found.bytes_moved / 1e6}
        floor = {"floor_h100_ms": found.floor_ms}
        rows.append({**head, "launches": found.total, **sizes, **floor})
        print(rows[-1])
    PATH.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


if __name__ == "__main__":
    main()
