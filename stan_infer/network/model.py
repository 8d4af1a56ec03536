"""Stan: CLIP's vision tower, the STAN branch beside it, CLIP's text tower.

This is the reference with which everything else is compared. Sources: Liu et al., "Revisiting
Temporal Modeling for CLIP-based Image-to-Video Knowledge Transferring", CVPR 2023, sections 3.2 and
3.3; where the paper and the authors' released code differ, the code. B clips, T frames, P patches,
N = 1 + P, D width, K branch layers, E embedding width.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from stan_infer.config import StanConfig
from stan_infer.network.layers import (
    Attention,
    Block,
    Conv2d,
    Conv3d,
    Embedding,
    Linear,
    Transformer,
)


class VisionTower(nn.Module):
    """The parameters of CLIP's ViT, which sees every frame on its own."""

    def __init__(self, config: StanConfig) -> None:
        """Allocate uninitialised parameters for `config`."""
        super().__init__()
        d = config.width
        self.conv1 = Conv2d(3, d, config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(d))
        self.positional_embedding = nn.Parameter(torch.empty(1 + config.patches, d))
        self.ln_pre = nn.LayerNorm(d, eps=config.norm_eps)
        self.transformer = Transformer(
            d, config.layers, config.heads, config.mlp_width, config.activation, config.norm_eps
        )
        self.ln_post = nn.LayerNorm(d, eps=config.norm_eps)
        self.proj = nn.Parameter(torch.empty(d, config.embed_dim))

    def tokens(self, frames: Tensor) -> Tensor:
        """Normalised frames [F, 3, S, S] -> tokens before the first layer [F, N, D]."""
        # [F, P, D], row-major over the grid
        patches = self.conv1(frames).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(frames.shape[0], 1, -1)
        return self.ln_pre(torch.cat([cls, patches], 1) + self.positional_embedding)


class TemporalAttention(nn.Module):
    """y + F(A(LN(y))) over the T tokens of each patch; F is a linear layer (`temporal_fc`)."""

    def __init__(self, config: StanConfig) -> None:
        """Allocate one temporal layer of the released (self-attention) form."""
        super().__init__()
        self.ln = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.fc = Linear(config.width, config.width)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, P, T, D] -> [B, P, T, D]."""
        return patches + self.fc(self.attn(self.ln(patches)))


class TemporalConv(nn.Module):
    """y + F(conv(y)): the dense 3x3x3 form of the authors' first release, no norm or activation."""

    def __init__(self, config: StanConfig) -> None:
        """Allocate one temporal layer of the convolution form."""
        super().__init__()
        self.conv = Conv3d(config.width, config.width, 3, padding=1)
        self.fc = Linear(config.width, config.width)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, P, T, D] -> [B, P, T, D]; the P patches are a square grid."""
        side = math.isqrt(patches.shape[1])
        grid = patches.unflatten(1, (side, side)).permute(0, 4, 3, 1, 2)  # [B, D, T, side, side]
        y = self.conv(grid).permute(0, 3, 4, 2, 1).flatten(1, 2)
        return patches + self.fc(y)


class Branch(nn.Module):
    """The STAN branch: K layers, each temporal then spatial, fed by the last K trunk layers."""

    def __init__(self, config: StanConfig) -> None:
        """Allocate K temporal and K spatial layers and the time table."""
        super().__init__()
        temporal = TemporalConv if config.branch == "conv" else TemporalAttention
        self.time_embedding = nn.Parameter(torch.empty(config.max_frames, config.width))
        self.temporal = nn.ModuleList(temporal(config) for _ in range(config.branch_layers))
        self.spatial = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_width, config.activation, config.norm_eps)
            for _ in range(config.branch_layers)
        )

    def start(self, cls: Tensor, patches: Tensor, visual: VisionTower) -> tuple[Tensor, Tensor]:
        """Input of branch layer 0 from trunk layer L-K: position and time are added here, once."""
        pos = visual.positional_embedding
        time = self.time_embedding[: patches.shape[2]]  # [T, D]
        cls = (cls + visual.class_embedding + pos[0]) / 2
        return cls, patches + pos[1:, None] + time

    def layer(self, k: int, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Branch layer k on the clip's class token [B, D] and its patch tokens [B, P, T, D]."""
        patches = self.temporal[k](patches)
        block = cast(Block, self.spatial[k])
        frames = patches.transpose(1, 2)  # [B, T, P, D]
        shared = cls[:, None, None].expand(-1, frames.shape[1], -1, -1)
        r = block.attn(block.ln_1(torch.cat([shared, frames], 2)))  # [B, T, N, D]
        # The mean comes before the residual: the one class token is added once, not once per frame.
        cls = cls + r[:, :, 0].mean(1)
        patches = patches + r[:, :, 1:].transpose(1, 2)
        cls = cls + block.mlp(block.ln_2(cls))
        return cls, patches + block.mlp(block.ln_2(patches))


class Stan(nn.Module):
    """A STAN or Mug-STAN model; config.head changes which features are used, not the network."""

    def __init__(self, config: StanConfig) -> None:
        """Allocate uninitialised parameters: fill them with load_model or `init_random`."""
        super().__init__()
        self.config = config
        self.visual = VisionTower(config)
        self.branch = Branch(config)
        if config.has_text:
            d = config.text_width
            self.token_embedding = Embedding(config.vocab_size, d)
            self.positional_embedding = nn.Parameter(torch.empty(config.context_positions, d))
            self.transformer = Transformer(
                d,
                config.text_layers,
                config.text_heads,
                config.text_mlp_width,
                config.activation,
                config.norm_eps,
            )
            self.ln_final = nn.LayerNorm(d, eps=config.norm_eps)
            self.text_projection = nn.Parameter(torch.empty(d, config.embed_dim))

    def normalize(self, video: Tensor) -> Tensor:
        """uint8 RGB [B, T, H, W, 3] -> float32 [B, T, 3, H, W], (x - mean) / std per channel."""
        mean = torch.tensor(self.config.mean, dtype=torch.float32, device=video.device)
        std = torch.tensor(self.config.std, dtype=torch.float32, device=video.device)
        return ((video.float() - mean) / std).permute(0, 1, 4, 2, 3)

    def encode_video(self, video: Tensor) -> Tensor:
        """Features of every frame, each with the clip's class token added.

        video: float [B, T, 3, S, S] normalised, or uint8 [B, T, S, S, 3] -> [B, T, E], in the
        weights' dtype, not normalised. 1 <= T <= config.max_frames. The mean over T is the clip's
        embedding of the mean head; the Mug head scores the frames themselves.
        """
        if video.dtype == torch.uint8:
            video = self.normalize(video)
        clips, frames = video.shape[:2]
        x = self.visual.tokens(video.flatten(0, 1).to(self.visual.proj.dtype))  # [B*T, N, D]
        first = self.config.layers - self.config.branch_layers
        cls = patches = None
        for i, block in enumerate(self.visual.transformer.resblocks):
            x = block(x)
            if i < first:
                continue
            trunk = x.unflatten(0, (clips, frames))  # [B, T, N, D]
            trunk_cls, trunk_patches = trunk[:, :, 0].mean(1), trunk[:, :, 1:].transpose(1, 2)
            if cls is None or patches is None:
                cls, patches = self.branch.start(trunk_cls, trunk_patches, self.visual)
            else:
                cls, patches = cls + trunk_cls, patches + trunk_patches
            cls, patches = self.branch.layer(i - first, cls, patches)
        assert cls is not None  # branch_layers >= 1
        c = x[:, 0].unflatten(0, (clips, frames)) + cls[:, None]  # [B, T, D]
        return self.visual.ln_post(c) @ self.visual.proj

    def encode_text_tokens(self, ids: Tensor) -> Tensor:
        """Projected features of every token: int [Q, L] -> [Q, L, E], padding rows included.

        L is at most config.context_positions. Causal and without a padding mask, as in CLIP.
        """
        return self.ln_final(self._text_rows(ids)) @ self.text_projection

    def encode_text(self, ids: Tensor) -> Tensor:
        """Features at the end token (largest id, the first if several): int [Q, L] -> [Q, E]."""
        x = self._text_rows(ids)
        # Gathered before the norm: the same numbers, and rows that are not used need no norm.
        pooled = x[torch.arange(ids.shape[0], device=ids.device), ids.argmax(-1)]
        return self.ln_final(pooled) @ self.text_projection

    def _text_rows(self, ids: Tensor) -> Tensor:
        """Ids [Q, L] -> the last layer's token rows [Q, L, D]."""
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.transformer.resblocks:
            x = block(x, causal=True)
        return x


def init_random(model: Stan, seed: int = 0) -> Stan:
    """Fill every parameter with seeded random values of a trained network's size; return the model.

    For benchmarks and tests: outputs mean nothing, but none are zero and none overflow.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        noise = torch.empty(p.shape).normal_(generator=generator)
        with torch.no_grad():
            if name.endswith("bias"):
                value = 0.02 * noise
            elif ".ln_" in f".{name}" or ".ln." in name:
                value = 1 + 0.05 * noise
            elif p.dim() >= 2 and "embedding" not in name:
                fan_in = p.shape[0] if name.endswith("proj") else p[0].numel()
                value = noise * fan_in**-0.5
            else:
                value = 0.3 * noise
            p.copy_(value)
    return model
