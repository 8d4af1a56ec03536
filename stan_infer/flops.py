"""Floating-point operations of a model, by formula: a multiply and an add count as two.

Matrix products, convolutions and the two products of attention; norms, activations and sums do not
count. The same rule as torch.utils.flop_counter, with which a test compares.
"""

from __future__ import annotations

from stan_infer.config import StanConfig


def video_flops(config: StanConfig, frames: int) -> int:
    """FLOPs of one clip of `frames` frames through trunk, branch and projection."""
    c, d, m, p, t = config, config.width, config.mlp_width, config.patches, frames
    n = 1 + p
    layer = t * (_projections(n, d) + 4 * n * n * d + _mlp(n, d, m))
    if c.branch == "conv":
        temporal = 2 * p * t * 27 * d * d
    else:
        temporal = _projections(p * t, d) + 4 * p * t * t * d
    temporal += 2 * p * t * d * d
    spatial = t * (_projections(n, d) + 4 * n * n * d) + _mlp(1 + p * t, d, m)
    patches = 2 * t * p * d * 3 * c.patch**2
    return (
        patches
        + c.layers * layer
        + c.branch_layers * (temporal + spatial)
        + 2 * t * d * c.embed_dim
    )


def text_flops(config: StanConfig, length: int) -> int:
    """FLOPs of one text of `length` tokens, pooled at its end token; 0 without a text tower."""
    if not config.has_text:
        return 0
    d, m = config.text_width, config.text_mlp_width
    layer = _projections(length, d) + 4 * length * length * d + _mlp(length, d, m)
    return config.text_layers * layer + 2 * d * config.embed_dim


def _projections(tokens: int, width: int) -> int:
    return 2 * tokens * 4 * width * width  # q, k, v and the output


def _mlp(tokens: int, width: int, hidden: int) -> int:
    return 2 * tokens * 2 * width * hidden
