"""Transformer parts with open_clip's parameter names: attention, MLP, block, activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Unfilled:
    """Does not initialise new weights, since a checkpoint fills all of them.

    torch's own initialisation on the meta device also imports its compiler: 3 s of every load.
    """

    def reset_parameters(self) -> None:
        """Do nothing."""


class Linear(_Unfilled, nn.Linear):
    """nn.Linear without initial values."""


class Embedding(_Unfilled, nn.Embedding):
    """nn.Embedding without initial values."""


class Conv2d(_Unfilled, nn.Conv2d):
    """nn.Conv2d without initial values."""


class Conv3d(_Unfilled, nn.Conv3d):
    """nn.Conv3d without initial values."""


class Attention(nn.Module):
    """Multi-head self-attention, [*, N, D] -> [*, N, D]; parameters as in nn.MultiheadAttention.

    softmax(q k^T / sqrt(dh)) v; one linear makes q, k and v (its rows); all linears have a bias.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Split `width` into `heads` heads; `width` must be divisible by `heads`."""
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """Attend along the second-last axis; `causal` hides later positions."""
        tokens = x.flatten(0, -3)  # [M, N, D]: the ONNX exporter takes attention of four axes only
        qkv = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)  # [M, N, 3D]
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [M, H, N, dh]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(y.transpose(1, 2).flatten(-2)).view_as(x)


class MLP(nn.Module):
    """Two linear layers with CLIP's activation between them, [*, D] -> [*, D]."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        """Take `activation` as in StanConfig: quick_gelu (OpenAI's weights) or gelu."""
        super().__init__()
        self.activation = activation
        self.c_fc = Linear(width, hidden)
        self.c_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every token."""
        u = self.c_fc(x)
        u = u * torch.sigmoid(1.702 * u) if self.activation == "quick_gelu" else F.gelu(u)
        return self.c_proj(u)


class Block(nn.Module):
    """Pre-norm transformer layer of CLIP: z + A(LN1(z)), then z + M(LN2(z))."""

    def __init__(self, width: int, heads: int, mlp: int, activation: str, eps: float) -> None:
        """Build one layer; `mlp` is the hidden width of M."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, mlp, activation)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """[*, N, D] -> [*, N, D]."""
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks under open_clip's name `resblocks`; callers loop over it themselves."""

    def __init__(
        self, width: int, layers: int, heads: int, mlp: int, activation: str, eps: float
    ) -> None:
        """Build `layers` equal blocks."""
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(width, heads, mlp, activation, eps) for _ in range(layers)
        )
