"""The weights of a Stan, rewritten once for inference and in fp64 for the network of `fused`.

The rewrites (W x + b is a linear, gamma and beta are those of a norm, dh is the head width):

- scale: W_q, b_q <- W_q dh^-1/2 (times log2 e for kernels whose softmax is exp2).
- biases: softmax(q.k + q.b_k) = softmax(q.k), so b_k goes; the weights of a softmax sum to 1, so
  b_v moves: b_o <- b_o + W_o b_v.
- temporal_fc: W_o <- W_fc W_o, b_o <- W_fc b_o + b_fc; likewise into the convolution.
- norms: W <- W diag(gamma), b <- b + W beta, for every norm but the one before the trunk.
- QuickGELU as SiLU: x sigmoid(1.702 x) = SiLU(1.702 x) / 1.702.
- pixels: W <- W / std, b = -W (mean / std), so that the input is uint8.
- tables: the class token before the trunk, and its share of the branch's start, are constants.
- one frame: softmax of one score is 1, so temporal attention is the linear map W_o W_v.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stan_infer.network.folded import (
    BranchLayer,
    Conv,
    FoldedLinear,
    LastSpatial,
    Layer,
    OnDemand,
    Patches,
    Start,
    Temporal,
    TextWeights,
    VideoWeights,
)
from stan_infer.network.layers import Attention, Block, Linear
from stan_infer.network.model import Stan, TemporalAttention, TemporalConv
from stan_infer.network.skeleton import text_skeleton, video_skeleton

_Matrix = tuple[Tensor, Tensor]  # weight [out, in] and bias [out], in fp64
_LOG2_E = math.log2(math.e)
_GELU = 1.702


def fold_video(
    model: Stan,
    *,
    input: str = "uint8",
    dtype: torch.dtype | None = None,
    base2: bool = False,
    on_demand: bool = False,
) -> VideoWeights:
    """Fold the video tower of `model`, which is not changed.

    input: "uint8" (pixels 0..255, normalisation folded) or "float" (normalised pixels). dtype: of
    the result (default: the model's). base2: scale the queries for a softmax of powers of two.
    on_demand: fold each layer every time it is read, for a single pass in little memory.
    """
    visual, branch = model.visual, model.branch
    like = video_skeleton(model.config, input, base2=base2)
    fold = _Folder(dtype or visual.proj.dtype, base2)
    blocks = [_block(b) for b in visual.transformer.resblocks]
    spatial = [_block(b) for b in branch.spatial]
    pos = fold.double(visual.positional_embedding)
    cls = fold.double(visual.class_embedding)

    def trunk_layer(i: int) -> Layer:
        return fold.layer(like.trunk[i], blocks[i])

    def branch_layer(k: int) -> BranchLayer:
        part = like.branch[k]
        temporal = fold.temporal(part.temporal, branch.temporal[k])
        if isinstance(part.spatial, LastSpatial):
            return BranchLayer(part.path, temporal, fold.last_spatial(part.spatial, spatial[k]))
        return BranchLayer(part.path, temporal, fold.layer(part.spatial, spatial[k]))

    trunk: Sequence[Layer] = OnDemand(len(blocks), trunk_layer)
    layers: Sequence[BranchLayer] = OnDemand(len(spatial), branch_layer)
    return VideoWeights(
        like.tower,
        fold.patches(like.patches, model),
        trunk if on_demand else tuple(trunk),
        Start(
            like.start.path,
            fold.done(cls + pos[0]),
            fold.done(pos[1:]),
            fold.done(fold.double(branch.time_embedding)),
        ),
        layers if on_demand else tuple(layers),
        fold.head(like.head, visual.ln_post, visual.proj),
    )


def fold_text(
    model: Stan, *, dtype: torch.dtype | None = None, base2: bool = False, on_demand: bool = False
) -> TextWeights:
    """Fold the text tower of `model`, which must have one; see fold_video."""
    like = text_skeleton(model.config, base2=base2)
    blocks = [_block(b) for b in model.transformer.resblocks]
    fold = _Folder(dtype or model.text_projection.dtype, base2)

    def layer(i: int) -> Layer:
        return fold.layer(like.layers[i], blocks[i])

    layers: Sequence[Layer] = OnDemand(len(blocks), layer)
    return TextWeights(
        like.tower,
        dataclasses.replace(
            like.tokens,
            table=model.token_embedding.weight.detach().to(fold.dtype),
            positions=model.positional_embedding.detach().to(fold.dtype),
        ),
        layers if on_demand else tuple(layers),
        fold.head(like.head, model.ln_final, model.text_projection),
    )


class _Folder:
    """Folds one matrix at a time in fp64, so that memory holds only one such matrix."""

    def __init__(self, dtype: torch.dtype, base2: bool) -> None:
        self.dtype, self.base2 = dtype, base2

    def double(self, value: Tensor) -> Tensor:
        return value.detach().double()

    def done(self, value: Tensor) -> Tensor:
        return value.to(self.dtype).contiguous()

    def linear(self, like: FoldedLinear, matrix: _Matrix) -> FoldedLinear:
        return dataclasses.replace(like, weight=self.done(matrix[0]), bias=self.done(matrix[1]))

    def after_norm(self, norm: torch.nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> _Matrix:
        """Fold gain and shift of `norm` into the linear that reads it."""
        w, beta = self.double(weight), self.double(norm.bias)
        b = w @ beta
        return w * self.double(norm.weight), b if bias is None else b + self.double(bias)

    def attention(
        self, norm: torch.nn.LayerNorm, attn: Attention, after: Linear | None = None
    ) -> tuple[_Matrix, _Matrix]:
        """Fold the linear of q, k, v and the output linear, with the linear `after` that."""
        qkv_weight, qkv_bias = self.after_norm(norm, attn.in_proj_weight, attn.in_proj_bias)
        d = qkv_weight.shape[1]
        scale = (d // attn.heads) ** -0.5 * (_LOG2_E if self.base2 else 1.0)
        weight, bias = qkv_weight.clone(), torch.zeros_like(qkv_bias)
        weight[:d] *= scale
        bias[:d] = qkv_bias[:d] * scale
        w_o = self.double(attn.out_proj.weight)
        b_o = self.double(attn.out_proj.bias) + w_o @ qkv_bias[2 * d :]
        if after is not None:
            w_fc = self.double(after.weight)
            w_o, b_o = w_fc @ w_o, w_fc @ b_o + self.double(after.bias)
        return (weight, bias), (w_o, b_o)

    def mlp(self, like: Layer | LastSpatial, block: Block) -> tuple[FoldedLinear, FoldedLinear]:
        weight, bias = self.after_norm(block.ln_2, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        scale = _GELU if block.mlp.activation == "quick_gelu" else 1.0
        w2 = self.double(block.mlp.c_proj.weight) / scale
        fc2 = w2, self.double(block.mlp.c_proj.bias)
        return (
            self.linear(like.fc1, (weight * scale, bias * scale)),
            self.linear(like.fc2, fc2),
        )

    def layer(self, like: Layer, block: Block) -> Layer:
        qkv, out = self.attention(block.ln_1, block.attn)
        linears = self.linear(like.qkv, qkv), self.linear(like.out, out)
        return Layer(*linears, *self.mlp(like, block))

    def temporal(self, like: Temporal | Conv, module: torch.nn.Module) -> Temporal | Conv:
        if isinstance(like, Conv):
            assert isinstance(module, TemporalConv)
            w_fc = self.double(module.fc.weight)
            weight = torch.tensordot(w_fc, self.double(module.conv.weight), 1)
            assert module.conv.bias is not None
            bias = w_fc @ self.double(module.conv.bias) + self.double(module.fc.bias)
            return Conv(like.path, weight.to(self.dtype), bias.to(self.dtype))
        assert isinstance(module, TemporalAttention)
        qkv, out = self.attention(module.ln, module.attn, module.fc)
        values = qkv[0][-len(out[1]) :]
        return Temporal(
            self.linear(like.qkv, qkv),
            self.linear(like.out, out),
            self.linear(like.single, (out[0] @ values, out[1])),
        )

    def last_spatial(self, like: LastSpatial, block: Block) -> LastSpatial:
        (weight, bias), out = self.attention(block.ln_1, block.attn)
        d, heads = weight.shape[1], block.attn.heads
        split = (heads, d // heads, d)
        return LastSpatial(
            self.linear(like.q, (weight[:d], bias[:d])),
            weight[d : 2 * d].to(self.dtype).view(split),
            weight[2 * d :].to(self.dtype).view(split),
            self.linear(like.out, out),
            *self.mlp(like, block),
        )

    def head(
        self, like: FoldedLinear, norm: torch.nn.LayerNorm, projection: Tensor
    ) -> FoldedLinear:
        return self.linear(like, self.after_norm(norm, projection.T, None))

    def patches(self, like: Patches, model: Stan) -> Patches:
        config, visual = model.config, model.visual
        weight = self.double(visual.conv1.weight)  # [D, 3, p, p]
        table = self.double(visual.positional_embedding)
        if like.layout == "BTHWC":
            std = weight.new_tensor(config.std).view(3, 1, 1)
            mean = weight.new_tensor(config.mean).view(3, 1, 1)
            weight = weight / std
            patches = table[1:] - (weight * mean).sum((1, 2, 3))
            weight = weight.permute(0, 2, 3, 1)  # [D, p, p, 3]
        else:
            patches = table[1:]
        norm = visual.ln_pre
        gamma, beta = self.double(norm.weight), self.double(norm.bias)
        first = self.double(visual.class_embedding) + table[0]
        cls_row = torch.nn.functional.layer_norm(first, first.shape, gamma, beta, norm.eps)
        return dataclasses.replace(
            like,
            weight=weight.flatten(1).to(self.dtype),
            table=patches.to(self.dtype),
            gamma=gamma.to(self.dtype),
            beta=beta.to(self.dtype),
            cls_row=self.done(cls_row),
        )


def _block(module: torch.nn.Module) -> Block:
    assert isinstance(module, Block)
    return module
