"""python -m benchmarks.rewrites: the FLOPs that each rewrite of the fused network saves.

Counted by torch.utils.flop_counter on tensors without memory: the piece of the reference against
the piece that took its place. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import append_rows
from benchmarks.script import options
from stan_infer.checkpoints.presets import preset
from stan_infer.network.fold import fold_video
from stan_infer.network.folded import LastSpatial, Layer, Temporal
from stan_infer.network.layers import Block
from stan_infer.network.model import Stan, TemporalAttention
from stan_infer.network.torch_ops import TorchOps, encode_video


def count(run: Callable[[], Any]) -> int:
    """FLOPs of what `run` computes."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return counter.get_total_flops()


def measure(name: str, frames: int) -> list[dict[str, Any]]:
    """Rows of one preset: each rewrite, then all of them, as shares of the reference."""
    with torch.device("meta"):
        model = Stan(preset(name)).eval().requires_grad_(False)
        config, weights = model.config, fold_video(model)
        side, p, d = config.image_size, config.patches, config.width
        video = torch.empty(1, frames, side, side, 3, dtype=torch.uint8)
        patches = torch.empty(1, frames, p, d)
        cls = torch.empty(1, d)
        before = count(lambda: model.encode_video(video))
        after = count(lambda: encode_video(weights, video))
        saved = {
            "temporal_fc folded": _temporal_fc(model, patches),
            "class token once per clip": _class_once(model, weights, patches, cls),
            "last layer: class token alone": _last_layer(model, weights, patches, cls),
        }
        if frames == 1:
            saved["one frame: no attention"] = _one_frame(model, weights, patches)
    rest = before - after - sum(saved.values())
    saved |= {"head (frames and their mean)": rest, "all": before - after}
    return [
        {
            "model": name,
            "frames": frames,
            "rewrite": rewrite,
            "gflop_saved": flops / 1e9,
            "share_saved": flops / before,
            "reference_gflop": before / 1e9,
        }
        for rewrite, flops in saved.items()
    ]


def _temporal_fc(model: Stan, patches: torch.Tensor) -> int:
    total = 0
    for module in model.branch.temporal:
        assert isinstance(module, TemporalAttention)
        total += count(lambda module=module: module.fc(patches))
    return total


def _one_frame(model: Stan, weights: Any, patches: torch.Tensor) -> int:
    total = 0
    for module, layer in zip(model.branch.temporal, weights.branch, strict=True):
        assert isinstance(module, TemporalAttention) and isinstance(layer.temporal, Temporal)
        ops, single = TorchOps(1, 1), layer.temporal.single
        total += count(lambda module=module: module.attn(patches.transpose(1, 2)))
        total -= count(lambda ops=ops, single=single: ops.linear(patches, single))
    return total


def _reference_spatial(block: Block, patches: torch.Tensor) -> int:
    """Attention of every frame with the class token, and the MLP of all rows."""
    frames = patches.flatten(0, 1)
    rows = torch.empty(len(frames), frames.shape[1] + 1, frames.shape[2], device="meta")
    flat = torch.empty(frames.shape[0] * frames.shape[1] + 1, frames.shape[2], device="meta")
    return count(lambda: block.attn(rows)) + count(lambda: block.mlp(flat))


def _class_once(model: Stan, weights: Any, patches: torch.Tensor, cls: torch.Tensor) -> int:
    total = 0
    for block, layer in zip(model.branch.spatial[:-1], weights.branch[:-1], strict=True):
        assert isinstance(block, Block) and isinstance(layer.spatial, Layer)
        w, ops = layer.spatial, TorchOps(1, patches.shape[1])

        def fused(w: Layer = w, ops: TorchOps = ops) -> None:
            rows = ops.join("join", patches, cls)
            y = ops.spatial_attention("a", ops.linear(rows, w.qkv), weights.tower)
            ops.linear(ops.linear(ops.linear(y, w.out), w.fc1), w.fc2)

        total += _reference_spatial(block, patches) - count(fused)
    return total


def _last_layer(model: Stan, weights: Any, patches: torch.Tensor, cls: torch.Tensor) -> int:
    block, w = model.branch.spatial[-1], weights.branch[-1].spatial
    assert isinstance(block, Block) and isinstance(w, LastSpatial)
    ops = TorchOps(1, patches.shape[1])

    def fused() -> None:
        y = ops.class_attention(patches, cls, w, weights.tower)
        ops.linear(ops.linear(ops.linear(y, w.out), w.fc1), w.fc2)

    return _reference_spatial(block, patches) - count(fused)


def main() -> None:
    """Count, print and record."""
    args = options(__doc__, presets=("stan-b32", "stan-b16", "stan-l14"), frames=(1, 12))
    for name in args.presets:
        for frames in args.frames:
            rows = measure(name, frames)
            append_rows("rewrites", rows)
            for row in rows:
                share, rewrite = 100 * row["share_saved"], row["rewrite"]
                print(f"{name} T={frames} {rewrite:32s} {share:7.3f} %")


if __name__ == "__main__":
    main()
