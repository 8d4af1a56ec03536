"""Operations of `fused` put together from smaller ones, for sets without fused kernels.

The composition is written here once; the sets (torch, ONNX) implement the smaller operations.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import TypeVar

from stan_infer.network.folded import Array, FoldedLinear, LastSpatial, Temporal, TowerConfig
from stan_infer.network.fused import Ops

V = TypeVar("V")


class PlainOps(Ops[V]):
    """See fused.Ops. Patches are [B, T, P, D], the clip's class token [B, D]."""

    single_frame: bool  # T is 1 in every call

    @abstractmethod
    def norm(self, name: str, x: V, tower: TowerConfig, gain: Array | None = None) -> V:
        """(x - mean) / sqrt(var + eps) over the last axis, times gain [D]."""

    @abstractmethod
    def temporal_attention(self, name: str, qkv: V, tower: TowerConfig) -> V:
        """Patches' q, k, v -> patches, each patch attending to itself in all frames."""

    @abstractmethod
    def absorbed_attention(
        self, name: str, q: V, patches: V, cls: V, w: LastSpatial, tower: TowerConfig
    ) -> V:
        """Ops.class_attention of the query q [B, D], for patches and a class token after norms."""

    @abstractmethod
    def class_rows(self, name: str, trunk: V, cls: V) -> V:
        """The class tokens in the trunk rows plus the branch's: [B, T, D]."""

    @abstractmethod
    def frame_mean(self, name: str, x: V) -> V:
        """Mean over T: [B, T, D] -> [B, D]."""

    @abstractmethod
    def end_rows(self, name: str, x: V, ids: V) -> V:
        """Rows [Q, L, D] at the largest id of each text, the first if several -> [Q, D]."""

    def norm_linear(
        self,
        x: V,
        w: FoldedLinear,
        tower: TowerConfig,
        *,
        activation: str | None = None,
        residual: V | None = None,
    ) -> V:
        z = self.norm(f"{w.block}/norm", x, tower, w.gain)
        return self.linear(z, w, activation=activation, residual=residual)

    def temporal(self, patches: V, w: Temporal, tower: TowerConfig) -> V:
        if self.single_frame:
            return self.norm_linear(patches, w.single, tower, residual=patches)
        qkv = self.norm_linear(patches, w.qkv, tower)
        y = self.temporal_attention(f"{w.qkv.block}/softmax", qkv, tower)
        return self.linear(y, w.out, residual=patches)

    def class_attention(self, patches: V, cls: V, w: LastSpatial, tower: TowerConfig) -> V:
        block = w.q.block
        keys = self.norm(f"{block}/norm", patches, tower)
        own = self.norm(f"{block}/norm_cls", cls, tower)
        q = self.linear(own, w.q)
        return self.absorbed_attention(f"{block}/softmax", q, keys, own, w, tower)

    def head(self, trunk: V, cls: V, w: FoldedLinear, tower: TowerConfig) -> tuple[V, V]:
        rows = self.class_rows(f"{w.block}/class", trunk, cls)
        rows = self.norm(f"{w.block}/norm", rows, tower)
        mean = self.frame_mean(f"{w.block}/mean", rows)
        return self.linear(mean, w), self.linear(rows, dataclasses.replace(w, name="frames"))

    def text_head(self, x: V, ids: V, w: FoldedLinear, tower: TowerConfig) -> tuple[V, V]:
        rows = self.norm(f"{w.block}/norm", x, tower)
        end = self.end_rows(f"{w.block}/end", rows, ids)
        return self.linear(end, w), self.linear(rows, dataclasses.replace(w, name="tokens"))
