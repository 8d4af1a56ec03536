"""Run the video tower again from one block on; what comes before it is kept from the first run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stan_infer.network.fold import Conv, LastSpatial, Patches, Product, Stream, VideoWeights
from stan_infer.network.fused import video_tower
from stan_infer.network.torch_ops import TorchOps


class Replay:
    """One clip: the residual stream of its first run, 3 values [T, P + 1, D] per layer at most."""

    @torch.inference_mode()
    def __init__(self, weights: VideoWeights, video: Tensor) -> None:
        """Run clips [B, T, ...] once; `embeds` is their video_embeds [B, E]."""
        self._video = video
        self._kept: dict[str, Tensor] = {}
        self.embeds = self._run(weights, None)

    @torch.inference_mode()
    def changed(self, weights: VideoWeights, product: str) -> Tensor:
        """video_embeds [B, E] of weights that differ from the first ones in that product alone."""
        return self._run(weights, product.rpartition("/")[0])

    def _run(self, weights: VideoWeights, block: str | None) -> Tensor:
        ops = _From(self._video.shape[0], self._video.shape[1], block, self._kept)
        return video_tower(ops, weights, self._video)[0]


class _From(TorchOps):
    """TorchOps that compute from a block on; before it a residual stream is what was kept.

    All else there is handed through: nobody looks at it. block None: compute and keep all.
    """

    def __init__(self, batch: int, frames: int, block: str | None, kept: dict[str, Tensor]) -> None:
        super().__init__(batch, frames)
        self._block, self._kept, self._reached = block, kept, block is None

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        with super().scope(name):
            self._reached = self._reached or self._path == f"{self._block}/"
            yield

    @property
    def _is_known(self) -> bool:
        if not self._reached:
            return True
        # The trunk does not read the branch.
        in_branch = (self._block or "").startswith("video/branch/")
        return in_branch and self._path.startswith("video/trunk/")

    def _keep(self, name: str, value: Tensor) -> Tensor:
        if self._block is None:
            self._kept[self._path + name] = value
        return value

    def embed(self, name: str, video: Tensor, w: Patches, stream: Stream) -> Tensor:
        if self._is_known:
            return self._kept[self._path + name]
        return self._keep(name, super().embed(name, video, w, stream))

    def product(self, name: str, x: Tensor, w: Product, **options: Any) -> Tensor:
        if options.get("residual") is None:
            return x if self._is_known else super().product(name, x, w, **options)
        if self._is_known:
            return self._kept[self._path + name]
        return self._keep(name, super().product(name, x, w, **options))

    def temporal_conv(self, name: str, patches: Tensor, w: Conv) -> Tensor:
        if self._is_known:
            return self._kept[self._path + name]
        return self._keep(name, super().temporal_conv(name, patches, w))

    def norm(self, name: str, x: Tensor, stream: Stream, gain: Tensor | None = None) -> Tensor:
        return x if self._is_known else super().norm(name, x, stream, gain)

    def attention(self, name: str, qkv: Tensor, stream: Stream, *, causal: bool = False) -> Tensor:
        return qkv if self._is_known else super().attention(name, qkv, stream, causal=causal)

    def temporal_attention(self, name: str, qkv: Tensor, stream: Stream) -> Tensor:
        return qkv if self._is_known else super().temporal_attention(name, qkv, stream)

    def spatial_attention(self, name: str, qkv: Tensor, stream: Stream) -> Tensor:
        return qkv if self._is_known else super().spatial_attention(name, qkv, stream)

    def class_attention(
        self, name: str, q: Tensor, patches: Tensor, cls: Tensor, w: LastSpatial, stream: Stream
    ) -> Tensor:
        if self._is_known:
            return q
        return super().class_attention(name, q, patches, cls, w, stream)
