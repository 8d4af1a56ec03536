"""The reference model, exported by torch.onnx.export: a baseline for benchmarks and for tests.

torch's exporter fixes an axis without a message if the example's size is 1 or equals another size.
The written graph is checked like every other one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stan_infer.artefacts.opsets import OPSETS
from stan_infer.export.onnx_graph import MAX_INLINE
from stan_infer.export.options import Range
from stan_infer.network.model import Stan
from stan_infer.system.packages import require


class _Tower(nn.Module):
    def __init__(self, model: Stan) -> None:
        super().__init__()
        self.model = model  # not a copy


class VideoGraph(_Tower):
    """Clips -> mean embedding and frame embeddings, both float32."""

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Clips as in Stan.encode_video -> [B, E] and [B, T, E]."""
        frames = self.model.encode_video(video).float()
        return frames.mean(1), frames


class TextGraph(_Tower):
    """Ids -> text embeddings and token embeddings, both float32."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [Q, L] -> [Q, E] and [Q, L, E]."""
        tokens = self.model.encode_text_tokens(input_ids).float()
        end = input_ids.argmax(-1)[:, None, None].expand(-1, 1, tokens.shape[-1])
        return tokens.gather(1, end)[:, 0], tokens


def write_reference(
    module: nn.Module,
    path: Path,
    example: np.ndarray,
    dims: dict[str, Range],
    names: list[str],
    opset: int,
) -> list[str]:
    """Export `module` to `path`; return the names of external data files.

    example: its input, in which no two sizes are equal and none is 1. dims: names and ranges of its
    first two axes; an axis whose range is a single value is fixed. names: of the input, then of the
    outputs.
    """
    require("onnxscript", "the reference export", "cpu")
    axes: dict[int, Any] = {
        i: torch.export.Dim(name, min=low, max=high)
        for i, (name, (low, high)) in enumerate(dims.items())
        if low < high
    }
    program = torch.onnx.export(
        module.eval(),
        (torch.from_numpy(example),),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes={names[0]: axes},
        input_names=names[:1],
        output_names=names[1:],
        verbose=False,
    )
    assert program is not None
    program.model.ir_version = OPSETS[opset].ir  # torch writes 10 for all, which is too new or old
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    program.save(str(path), external_data=size > MAX_INLINE)
    data = path.with_name(f"{path.name}.data")
    return [data.name] if data.exists() else []
