"""Folded weights of a model with every path and no value, which whatever has the values fills.

This is where every part gets its path: `fold` fills it from a model, `export.read_weights` from a
graph. It needs no torch.
"""

from __future__ import annotations

import math

from stan_infer.config import StanConfig
from stan_infer.network.folded import (
    BranchLayer,
    Conv,
    FoldedLinear,
    LastSpatial,
    Layer,
    Patches,
    Start,
    Temporal,
    TextWeights,
    Tokens,
    TowerConfig,
    VideoWeights,
)


def video_skeleton(config: StanConfig, input: str, *, base2: bool = False) -> VideoWeights:
    """The video tower. input, base2: as of fold.fold_video."""
    last = config.branch_layers - 1
    return VideoWeights(
        _tower(config.heads, config, base2),
        _patches(config.patch, "BTHWC" if input == "uint8" else "BTCHW"),
        tuple(
            _layer(f"video/trunk/layer{i}/attention", f"video/trunk/layer{i}/mlp")
            for i in range(config.layers)
        ),
        Start("video/branch/layer0/start", None, None, None),
        tuple(
            _branch_layer(f"video/branch/layer{k}", config.branch == "conv", k == last)
            for k in range(config.branch_layers)
        ),
        _linear("video/head", "video"),
    )


def text_skeleton(config: StanConfig, *, base2: bool = False) -> TextWeights:
    """The text tower."""
    return TextWeights(
        _tower(config.text_heads, config, base2),
        Tokens("text/tokens", None, None),
        tuple(
            _layer(f"text/layer{i}/attention", f"text/layer{i}/mlp")
            for i in range(config.text_layers)
        ),
        _linear("text/head", "text"),
    )


def _tower(heads: int, config: StanConfig, base2: bool) -> TowerConfig:
    name = "silu" if config.activation == "quick_gelu" else config.activation
    return TowerConfig(heads, config.norm_eps, name, math.log(2) if base2 else 1.0)


def _patches(patch: int, layout: str) -> Patches:
    return Patches("video/patches", None, None, None, None, None, patch, layout)


def _linear(block: str, name: str) -> FoldedLinear:
    return FoldedLinear(block, name, None, None)


def _layer(attention: str, mlp: str) -> Layer:
    return Layer(
        *(_linear(attention, name) for name in ("qkv", "out")),
        *(_linear(mlp, name) for name in ("fc1", "fc2")),
    )


def _branch_layer(path: str, is_conv: bool, is_last: bool) -> BranchLayer:
    block = f"{path}/temporal"
    temporal: Temporal | Conv
    if is_conv:
        temporal = Conv(f"{block}/conv", None, None)
    else:
        temporal = Temporal(*(_linear(block, name) for name in ("qkv", "out", "single")))
    if not is_last:
        return BranchLayer(path, temporal, _layer(f"{path}/spatial", f"{path}/mlp"))
    q, out = (_linear(f"{path}/spatial", name) for name in ("q", "out"))
    fc1, fc2 = (_linear(f"{path}/spatial/mlp", name) for name in ("fc1", "fc2"))
    return BranchLayer(path, temporal, LastSpatial(q, None, None, out, fc1, fc2))
