"""python -m benchmarks.launches: predict the network's time on GPUs by arithmetic, without a GPU.

The network runs on fake CUDA tensors. Every operation except a view counts as one launch, or two
(TWICE), and moves its operands and its result once. Torch's attention counts as one launch, as it
is one on a GPU that has FlashAttention. Of each call three times are taken, at the rates of a data
sheet (`kernels/rule.py`): for its bytes, for its FLOPs on the tensor cores, and to issue the
instructions of its inner loop, as `python -m benchmarks.aot` has counted them in the machine code
of the tile that the rule picks. Their sums over all calls are floors. The predicted time adds up
calls one after the other: a product as `rule` has it, any other call the longest of its three times
at the shares that libraries reach, and its start. Work that overlaps on the
second stream is not taken off. Nothing here was measured.

Writes benchmarks/results/launches.jsonl and the table of BENCHMARKS.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.record import RESULTS, ROOT
from stan_infer.checkpoints.presets import preset
from stan_infer.kernels import rule, tuned
from stan_infer.kernels.tuned import Tile
from stan_infer.network.fold import fold_video
from stan_infer.network.fused import video_tower
from stan_infer.network.kernel_ops import KernelOps
from stan_infer.network.kernel_weights import prepare
from stan_infer.network.model import Stan

PATH = RESULTS / "launches.jsonl"
SHAPES = [("stan-b32", 1, 12), ("stan-b16", 1, 12), ("stan-b16", 8, 12), ("stan-l14", 8, 12)]
# The GPUs of rule.GPUS that are predicted.
GPUS = {"sm80": "A100", "sm89": "L40S", "sm90": "H100 SXM", "sm100": "B200"}
MEMORY = 0.9  # of the data sheet's rate, that copies reach
AOT = RESULTS / "aot.jsonl"
# Operations whose launcher starts two kernels.
TWICE = {"stan_infer::patch_embed", "stan_infer::cls_attention"}
# FLOPs of operations of which torch's counter knows only the parts.
FLOPS: dict[str, Callable[..., int]] = {
    "aten::linear": lambda x, w, *_, out_val: 2 * x.numel() * w.shape[0],
    "aten::addmm_": lambda r, a, b, *_, out_val: 2 * a.numel() * b.shape[1],
    "aten::scaled_dot_product_attention": lambda q, k, *_, out_val, **options: (
        4 * q.numel() * k.shape[-2]
    ),
}
# Products of the library: depth and columns from the shapes of their tensors.
LIBRARY: dict[str, Callable[..., tuple[int, int]]] = {
    "aten::linear": lambda shapes: (shapes[1][1], shapes[1][0]),
    "aten::addmm_": lambda shapes: shapes[2],
    "aten::addmm": lambda shapes: shapes[2],
}
# Operations that allocate memory or rename it: no kernel runs.
FREE = {
    "aten::empty",
    "aten::new_empty",
    "aten::detach",
    "aten::alias",
    "aten::_unsafe_view",
    "aten::lift_fresh",
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation. shapes: of its tensors, operands first."""

    name: str
    launches: int
    flops: int
    bytes: int
    shapes: tuple[tuple[int, ...], ...]


@dataclasses.dataclass
class Launches:
    """Counts of one forward pass of the video tower."""

    by_operation: Counter[str] = dataclasses.field(default_factory=Counter)
    bytes_by_operation: Counter[str] = dataclasses.field(default_factory=Counter)
    calls: list[Call] = dataclasses.field(default_factory=list)

    @property
    def total(self) -> int:
        """Kernels launched."""
        return sum(self.by_operation.values())

    @property
    def flops(self) -> int:
        """Floating-point operations of matrix products and attention."""
        return sum(call.flops for call in self.calls)

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
            count = flop_registry.get(func.overloadpacket) or FLOPS.get(name)
            flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
            shapes = tuple(tuple(x.shape) for x in tensors)
            self._found.calls.append(Call(name, 2 if name in TWICE else 1, flops, moved, shapes))
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
        with _Counter(found):
            video_tower(ops, weights, video)
    return found


@cache
def _issue(family: str, operation: str, tile: Tile) -> float:
    """Cycles to issue a step of a tile, the worst that is recorded; 0 without a record."""
    rows = map(json.loads, AOT.read_text().splitlines())
    wanted = [operation, family, list(dataclasses.astuple(tile))]
    own = [r for r in rows if [r["operation"], r["family"], r["tile"]] == wanted and r.get("loop")]
    return max((float(r["loop"].get("issue", 0.0)) for r in own), default=0.0)


def issue_us(call: Call, family: str, frames: int) -> float:
    """Time to issue the inner loops of one of our products, by its tile; of other calls 0."""
    g = rule.gpu(family)
    if call.name == "stan_infer::linear":
        (rows, k), (n, _) = call.shapes[:2]
        tile = rule.fastest(
            tuned.tiles("linear", family), "linear", family, g.processors, rows, n, k
        )
        operation, programs = "linear", -(-rows // tile.bm) * -(-n // tile.bn)
    elif call.name == "stan_infer::temporal_qkv_attention":
        operation, k = "temporal_qkv_attention", call.shapes[0][1]
        places, heads = call.shapes[-1][0] // frames, k // 64

        def count(t: Tile) -> int:
            return -(-places // (t.bm // frames)) * heads

        options = tuned.qkv_tiles(family, frames)
        tile = next((t for t in options if count(t) >= g.processors), options[-1])
        programs = count(tile)
    else:
        return 0.0
    steps = -(-programs // g.processors) * -(-k // tile.bk)
    return steps * _issue(family, operation, tile) / (g.ghz * 1e3)


def predict(found: Launches, family: str, frames: int) -> dict[str, float]:
    """Floors and predicted time of one forward pass in ms, by arithmetic."""
    g = rule.gpu(family)
    rate = g.tensor * g.ghz * g.processors * 1e3  # FLOP per us
    sums = {"memory_ms": 0.0, "tensor_ms": 0.0, "issue_ms": 0.0, "predicted_ms": 0.0}
    for call in found.calls:
        memory, tensor = call.bytes / (g.memory * 1e6), call.flops / rate
        issue = issue_us(call, family, frames)
        ours = 0.0
        if call.name == "stan_infer::linear":
            (rows, k), (n, _) = call.shapes[:2]
            options = tuned.tiles("linear", family)
            tile = rule.fastest(options, "linear", family, g.processors, rows, n, k)
            ours = rule.product_us(family, tile, g.processors, rows, n, k)
        elif call.name in LIBRARY:
            (k, n), rows = LIBRARY[call.name](call.shapes), math.prod(call.shapes[-1][:-1])
            ours = rule.library_us(family, rows, n, k)
        start = call.launches * rule.START_US
        longest = max(memory / MEMORY, tensor / rule.LIBRARY, issue, ours)
        for key, us in zip(sums, (memory, tensor, issue, longest + start), strict=True):
            sums[key] += us / 1e3
    return sums


def main() -> None:
    """Count the presets, predict, record, and write the table."""
    from benchmarks.tables.render import render

    rows = []
    for name, batch, frames in SHAPES:
        for family, gpu in GPUS.items():
            found = count_launches(
                name, batch=batch, frames=frames, kernels=frozenset({"trunk"}), family=family
            )
            head = {"kind": "launches", "model": name, "batch": batch, "frames": frames}
            head |= {"sm": family, "gpu": gpu, "launches": found.total}
            sizes = {"gflop": found.flops / 1e9, "mb": found.bytes_moved / 1e6}
            rows.append({**head, **sizes, **predict(found, family, frames)})
            print(rows[-1])
    PATH.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    page = ROOT / "BENCHMARKS.md"
    page.write_text(render(page.read_text()))


if __name__ == "__main__":
    main()
