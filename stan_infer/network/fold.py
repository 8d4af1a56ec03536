"""Weights of a Stan rewritten once for inference, in fp64, for the network of `fused`.

Which rewrite does what (W x + b linear, gamma and beta of a norm, dh head width):

- scale: W_q, b_q <- W_q dh^-1/2 (times log2 e for kernels whose softmax is exp2).
- biases: softmax(q.k + q.b_k) = softmax(q.k), so b_k goes; the weights of a softmax sum to 1, so
  b_v moves: b_o <- b_o + W_o b_v.
- temporal_fc: W_o <- W_fc W_o, b_o <- W_fc b_o + b_fc; likewise into the convolution.
- norms: W <- W diag(gamma), b <- b + W beta, for every norm but the one before the trunk.
- QuickGELU as SiLU: x sigmoid(1.702 x) = SiLU(1.702 x) / 1.702.
- pixels: W <- W / std, b = -W (mean / std), so that uint8 goes in.
- tables: the class token before the trunk, and its share of the branch's start, are constants.
- one frame: softmax of one score is 1, so temporal attention is the linear map W_o W_v.
- centred (a switch, off): C = I - 11^T/D on everything that is written to the residual stream,
  whose mean is then 0, so that a norm needs no mean. Exact, but it spreads outlier channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from stan_infer.errors import InputError
from stan_infer.network.layers import Attention, Block, Linear
from stan_infer.network.model import Stan, TemporalAttention, TemporalConv

T = TypeVar("T")
_LOG2_E = math.log2(math.e)
_GELU = 1.702


@dataclasses.dataclass(frozen=True)
class Product:
    """y = W x + b; weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor
    # [in]: the norm before the product multiplies its result by it, W's columns are divided by it.
    gain: Tensor | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Patches:
    """Pixels to trunk rows: product, a position table as its bias, the norm before the trunk."""

    weight: Tensor  # [D, 3 p p], columns in the order of one patch in memory
    table: Tensor  # [P, D]: positions, and the bias that normalised pixels leave
    gamma: Tensor  # [D]
    beta: Tensor  # [D]
    cls_row: Tensor  # [D]: the class token after the norm, the same for every frame
    patch: int
    layout: str  # BTHWC (uint8) or BTCHW (float, normalised)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One transformer layer with its norms folded: qkv [3D, D], out, fc1, fc2."""

    qkv: Product
    out: Product
    fc1: Product
    fc2: Product


@dataclasses.dataclass(frozen=True)
class Temporal:
    """Temporal attention with temporal_fc folded; `single` is the whole of it for one frame."""

    qkv: Product
    out: Product
    single: Product


@dataclasses.dataclass(frozen=True)
class Conv:
    """The 3x3x3 convolution with temporal_fc folded; weight [D, D, 3, 3, 3]."""

    weight: Tensor
    bias: Tensor


@dataclasses.dataclass(frozen=True)
class LastSpatial:
    """The last spatial layer, of which only the class token is read: K and V stay unapplied."""

    q: Product
    k: Tensor  # [H, dh, D]
    v: Tensor  # [H, dh, D]
    out: Product
    fc1: Product
    fc2: Product


@dataclasses.dataclass(frozen=True)
class BranchLayer:
    """One branch layer; `spatial` is a LastSpatial in the last one."""

    temporal: Temporal | Conv
    spatial: Layer | LastSpatial


@dataclasses.dataclass(frozen=True)
class Stream:
    """What every layer of a tower shares."""

    heads: int
    eps: float
    activation: str  # silu or gelu
    softmax_scale: float  # of the scores as they come: 1, or ln 2 with queries in base 2
    centred: bool


@dataclasses.dataclass(frozen=True)
class VideoWeights:
    """The video tower."""

    stream: Stream
    patches: Patches
    trunk: Sequence[Layer]
    branch_cls: Tensor  # [D]: added to the clip's class token at the branch's start
    branch_positions: Tensor  # [P, D]
    time: Tensor  # [Tmax, D]
    branch: Sequence[BranchLayer]
    head: Product  # [E, D]


@dataclasses.dataclass(frozen=True)
class TextWeights:
    """The text tower."""

    stream: Stream
    tokens: Tensor  # [V, D]
    positions: Tensor  # [L, D]
    layers: Sequence[Layer]
    head: Product  # [E, D]


class _OnDemand(Sequence[T]):
    """Folds a layer each time it is asked for, so that memory holds one layer more, not all."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < self._count:
            raise IndexError(i)
        return self._make(i)


def fold_video(
    model: Stan,
    *,
    input: str = "uint8",
    dtype: torch.dtype | None = None,
    base2: bool = False,
    centred: bool = False,
    on_demand: bool = False,
) -> VideoWeights:
    """Fold the video tower of `model`; the model stays as it is.

    input: "uint8" (pixels 0..255, normalisation folded) or "float" (normalised pixels). dtype: of
    the result (default: the model's). base2: queries for a softmax of powers of two. centred: a
    residual stream whose mean is 0 (see above); InputError with a convolution, which reads the
    stream without a norm. on_demand: fold each layer when it is read, for a single pass in little
    memory.
    """
    config, visual, branch = model.config, model.visual, model.branch
    if centred and config.branch == "conv":
        raise InputError("a centred stream needs a branch whose every reader has a norm; got conv")
    fold = _Folder(dtype or visual.proj.dtype, base2, centred)
    d = config.width
    stream = fold.stream(config.heads, config.norm_eps, config.activation)
    blocks = [_block(b) for b in visual.transformer.resblocks]
    spatial = [_block(b) for b in branch.spatial]
    last = len(spatial) - 1
    pos = fold.double(visual.positional_embedding)
    cls = fold.double(visual.class_embedding)

    def branch_layer(k: int) -> BranchLayer:
        end = fold.last_spatial if k == last else fold.layer
        return BranchLayer(fold.temporal(branch.temporal[k], d), end(spatial[k]))

    trunk: Sequence[Layer] = _OnDemand(len(blocks), lambda i: fold.layer(blocks[i]))
    layers: Sequence[BranchLayer] = _OnDemand(len(spatial), branch_layer)
    if not on_demand:
        trunk, layers = tuple(trunk), tuple(layers)
    return VideoWeights(
        stream,
        fold.patches(model, input),
        trunk,
        fold.written(cls + pos[0]),
        fold.written(pos[1:]),
        fold.written(fold.double(branch.time_embedding)),
        layers,
        fold.head(visual.ln_post, visual.proj),
    )


def fold_text(
    model: Stan,
    *,
    dtype: torch.dtype | None = None,
    base2: bool = False,
    on_demand: bool = False,
) -> TextWeights:
    """Fold the text tower of `model`, which must have one; see fold_video."""
    config = model.config
    blocks = [_block(b) for b in model.transformer.resblocks]
    fold = _Folder(dtype or model.text_projection.dtype, base2, centred=False)
    layers: Sequence[Layer] = _OnDemand(len(blocks), lambda i: fold.layer(blocks[i]))
    return TextWeights(
        fold.stream(config.text_heads, config.norm_eps, config.activation),
        model.token_embedding.weight.detach().to(fold.dtype),
        model.positional_embedding.detach().to(fold.dtype),
        layers if on_demand else tuple(layers),
        fold.head(model.ln_final, model.text_projection),
    )


class _Folder:
    """Folds one matrix at a time in fp64, so that memory holds one such matrix more."""

    def __init__(self, dtype: torch.dtype, base2: bool, centred: bool) -> None:
        self.dtype, self.base2, self.centred = dtype, base2, centred

    def double(self, value: Tensor) -> Tensor:
        return value.detach().double()

    def stream(self, heads: int, eps: float, activation: str) -> Stream:
        name = "silu" if activation == "quick_gelu" else activation
        return Stream(heads, eps, name, math.log(2) if self.base2 else 1.0, self.centred)

    def written(self, rows: Tensor) -> Tensor:
        """Rows [..., D] that are added to the stream."""
        if self.centred:
            rows = rows - rows.mean(-1, keepdim=True)
        return rows.to(self.dtype).contiguous()

    def product(self, weight: Tensor, bias: Tensor) -> Product:
        return Product(weight.to(self.dtype).contiguous(), bias.to(self.dtype).contiguous())

    def writer(self, weight: Tensor, bias: Tensor) -> Product:
        """Fold a product whose result is added to the stream."""
        return Product(self.written(weight.T).T.contiguous(), self.written(bias))

    def after_norm(self, norm: torch.nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Product:
        """Fold the affine part of `norm` into the product that reads it; stays in fp64."""
        w, beta = self.double(weight), self.double(norm.bias)
        b = w @ beta
        return Product(w * self.double(norm.weight), b if bias is None else b + self.double(bias))

    def attention(
        self, norm: torch.nn.LayerNorm, attn: Attention, after: Linear | None = None
    ) -> tuple[Product, Product]:
        """Fold the qkv product and the output product (`after` it, another one); in fp64."""
        qkv = self.after_norm(norm, attn.in_proj_weight, attn.in_proj_bias)
        d = qkv.weight.shape[1]
        scale = (d // attn.heads) ** -0.5 * (_LOG2_E if self.base2 else 1.0)
        weight, bias = qkv.weight.clone(), torch.zeros_like(qkv.bias)
        weight[:d] *= scale
        bias[:d] = qkv.bias[:d] * scale
        w_o = self.double(attn.out_proj.weight)
        b_o = self.double(attn.out_proj.bias) + w_o @ qkv.bias[2 * d :]
        if after is not None:
            w_fc = self.double(after.weight)
            w_o, b_o = w_fc @ w_o, w_fc @ b_o + self.double(after.bias)
        return Product(weight, bias), Product(w_o, b_o)

    def mlp(self, block: Block) -> tuple[Product, Product]:
        fc1 = self.after_norm(block.ln_2, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        scale = _GELU if block.mlp.activation == "quick_gelu" else 1.0
        w2 = self.double(block.mlp.c_proj.weight) / scale
        return (
            self.product(fc1.weight * scale, fc1.bias * scale),
            self.writer(w2, self.double(block.mlp.c_proj.bias)),
        )

    def layer(self, block: Block) -> Layer:
        qkv, out = self.attention(block.ln_1, block.attn)
        fc1, fc2 = self.mlp(block)
        return Layer(
            self.product(qkv.weight, qkv.bias), self.writer(out.weight, out.bias), fc1, fc2
        )

    def temporal(self, module: torch.nn.Module, d: int) -> Temporal | Conv:
        if isinstance(module, TemporalConv):
            w_fc = self.double(module.fc.weight)
            weight = torch.tensordot(w_fc, self.double(module.conv.weight), 1)
            assert module.conv.bias is not None
            bias = w_fc @ self.double(module.conv.bias) + self.double(module.fc.bias)
            return Conv(weight.to(self.dtype), bias.to(self.dtype))
        assert isinstance(module, TemporalAttention)
        qkv, out = self.attention(module.ln, module.attn, module.fc)
        return Temporal(
            self.product(qkv.weight, qkv.bias),
            self.writer(out.weight, out.bias),
            self.writer(out.weight @ qkv.weight[2 * d :], out.bias),
        )

    def last_spatial(self, block: Block) -> LastSpatial:
        qkv, out = self.attention(block.ln_1, block.attn)
        d, heads = qkv.weight.shape[1], block.attn.heads
        fc1, fc2 = self.mlp(block)
        split = (heads, d // heads, d)
        return LastSpatial(
            self.product(qkv.weight[:d], qkv.bias[:d]),
            qkv.weight[d : 2 * d].to(self.dtype).view(split),
            qkv.weight[2 * d :].to(self.dtype).view(split),
            self.writer(out.weight, out.bias),
            fc1,
            fc2,
        )

    def head(self, norm: torch.nn.LayerNorm, projection: Tensor) -> Product:
        folded = self.after_norm(norm, projection.T, None)
        return self.product(folded.weight, folded.bias)

    def patches(self, model: Stan, input: str) -> Patches:
        config, visual = model.config, model.visual
        weight = self.double(visual.conv1.weight)  # [D, 3, p, p]
        table = self.double(visual.positional_embedding)
        if input == "uint8":
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
        return Patches(
            weight.flatten(1).to(self.dtype),
            patches.to(self.dtype),
            gamma.to(self.dtype),
            beta.to(self.dtype),
            self.written(cls_row),
            config.patch,
            "BTHWC" if input == "uint8" else "BTCHW",
        )


def _block(module: torch.nn.Module) -> Block:
    assert isinstance(module, Block)
    return module
