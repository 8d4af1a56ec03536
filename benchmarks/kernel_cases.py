"""Calls of every kernel as the network makes them: what is compiled, timed and counted.

B/16 with T = 12 unless the name says otherwise; tensors are allocated, never filled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from stan_infer.kernels import (
    branch_merge,
    cls_attention,
    fp8_linear,
    head_rows,
    linear,
    patch_embed,
    spatial_attention,
    temporal_attention,
    temporal_qkv_attention,
)
from stan_infer.kernels.tuned import Tile, tiles

EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: `run` launches it; `module` holds the kernels."""

    operation: str
    name: str
    tile: Tile | None
    module: Any
    run: Callable[[], Any]
    bytes_moved: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a network and a batch."""

    batch: int = 1
    frames: int = 12
    patches: int = 196
    width: int = 768
    patch: int = 16
    head: int = 64

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // self.head


def cases(
    family: str, dtype: torch.dtype, device: str, shape: Shape = Shape(), *, full: bool = True
) -> Iterator[Case]:
    """Every operation with every tile of a family; full: other T, modes and epilogues too."""
    for make in (_linear, _fp8, _temporal, _temporal_qkv, _spatial, _cls, _embed, _rest):
        yield from make(family, dtype, device, shape, full)
    if full:  # 16 heads, and rows of weights that are no multiple of 16 bytes
        large = Shape(1, 12, 256, 1024, 14)
        for make in (_cls, _embed):
            for case in make(family, dtype, device, large, full):
                yield dataclasses.replace(case, name="L/14")


def _empty(device: str, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    return lambda *sizes: torch.empty(*sizes, dtype=dtype, device=device)


def _linear(family: str, dtype: torch.dtype, device: str, s: Shape, full: bool) -> Iterator[Case]:
    new, d, rows = _empty(device, dtype), s.width, s.batch * s.frames * (s.patches + 1)
    f32 = _empty(device, torch.float32)
    kinds: list[tuple[str, int, int, bool, str, bool, bool]] = [
        ("qkv: norm", 3 * d, d, True, "", False, False),
        ("fc1: norm, silu", 4 * d, d, True, "silu", False, False),
        ("fc2: residual", d, 4 * d, False, "", True, False),
    ]
    if full:
        kinds += [("fc1: norm, gelu", 4 * d, d, True, "gelu", False, False)]
        kinds += [("head: fp32 out", 512, d, False, "", False, True)]
    options = tiles("linear", family)
    for name, n, k, norm, activation, residual, wide in kinds:
        for tile in options if "gelu" not in name and "head" not in name else options[:1]:
            args = (
                new(rows, k), new(n, k), new(n), f32(n) if norm else None,
                new(rows, n) if residual else None, activation, EPS, wide, tile,
            )  # fmt: skip
            counts = linear.bytes_and_flops(
                rows, n, k, residual_rows=rows if residual else 0, size=dtype.itemsize
            )
            yield _case("linear", name, tile, linear, args, counts)


def _fp8(family: str, dtype: torch.dtype, device: str, s: Shape, full: bool) -> Iterator[Case]:
    new, d, rows = _empty(device, dtype), s.width, s.batch * s.frames * (s.patches + 1)
    f32, f8 = _empty(device, torch.float32), _empty(device, torch.float8_e4m3fn)
    for name, n, k, activation, residual in (
        ("fc1: silu", 4 * d, d, "silu", False),
        ("fc2: residual", d, 4 * d, "", True),
    ):
        for tile in tiles("fp8_linear", family):
            res = new(rows, n) if residual else None
            args = (new(rows, k), f8(n, k), f32(n), 0.01, new(n), res, activation, tile)
            counts = fp8_linear.bytes_and_flops(
                rows, n, k, residual_rows=rows if residual else 0, size=dtype.itemsize
            )
            yield _case("fp8_linear", name, tile, fp8_linear, args, counts)


def _times(tile: Tile, first: bool, full: bool, usual: int) -> Sequence[int]:
    """Frame counts that a tile is compiled for: the usual one, and with the first tile others."""
    if not full:
        return (usual,) if tile.bm >= usual else ()
    return [t for t in ((8, 12, 16, 64) if first else (12,)) if tile.bm >= t]


def _temporal(family: str, dtype: torch.dtype, device: str, s: Shape, full: bool) -> Iterator[Case]:
    for i, tile in enumerate(tiles("temporal_attention", family)):
        for t in _times(tile, i == 0, full, s.frames):
            qkv = _empty(device, dtype)(s.batch * t * s.patches, 3 * s.width)
            counts = temporal_attention.bytes_and_flops(
                s.batch, t, s.patches, s.heads, s.head, dtype.itemsize
            )
            args = (qkv, t, s.patches, s.heads, 1.0, tile)
            yield _case("temporal_attention", f"T={t}", tile, temporal_attention, args, counts)


def _temporal_qkv(
    family: str, dtype: torch.dtype, device: str, s: Shape, full: bool
) -> Iterator[Case]:
    new, f32, d = _empty(device, dtype), _empty(device, torch.float32), s.width
    weights = (new(3 * d, d), new(3 * d))
    for i, tile in enumerate(tiles("temporal_qkv_attention", family)):
        for t in _times(tile, i == 0, full, s.frames):
            rows = s.batch * t * s.patches
            args = (
                new(rows + s.batch, d), *weights, f32(3 * d),
                s.batch, t, s.patches, s.heads, 1.0, EPS, tile,
            )  # fmt: skip
            counts = temporal_qkv_attention.bytes_and_flops(
                s.batch, t, s.patches, s.heads, s.head, dtype.itemsize
            )
            yield _case(
                "temporal_qkv_attention", f"T={t}", tile, temporal_qkv_attention, args, counts
            )


def _spatial(family: str, dtype: torch.dtype, device: str, s: Shape, full: bool) -> Iterator[Case]:
    new, f = _empty(device, dtype), s.batch * s.frames
    count = torch.zeros(s.batch * s.heads, dtype=torch.int32, device=device)
    for tile in tiles("spatial_attention", family):
        for shared in (True, False):
            rows = f * s.patches + (s.batch if shared else f)
            args = (
                new(rows, 3 * s.width), count, s.batch, s.frames, s.heads, 1.0, shared, tile
            )  # fmt: skip
            counts = spatial_attention.bytes_and_flops(
                s.batch, s.frames, s.patches, s.heads, shared=shared, head=s.head,
                size=dtype.itemsize,
            )  # fmt: skip
            name = "branch" if shared else "trunk"
            yield _case("spatial_attention", name, tile, spatial_attention, args, counts)


def _cls(family: str, dtype: torch.dtype, device: str, s: Shape, full: bool) -> Iterator[Case]:
    new, rows = _empty(device, dtype), s.batch * (s.frames * s.patches + 1)
    for tile in tiles("cls_attention", family):
        u = new(s.batch, s.heads, s.width)
        args = (u, new(rows, s.width), s.batch, s.frames, 1.0, EPS, tile)
        counts = cls_attention.bytes_and_flops(
            s.batch, s.frames, s.patches, s.heads, s.head, dtype.itemsize
        )
        yield _case("cls_attention", "", tile, cls_attention, args, counts)


def _embed(family: str, dtype: torch.dtype, device: str, s: Shape, full: bool) -> Iterator[Case]:
    new, d, k = _empty(device, dtype), s.width, 3 * s.patch**2
    side = round(s.patches**0.5) * s.patch
    video = torch.empty(s.batch, s.frames, side, side, 3, dtype=torch.uint8, device=device)
    for tile in tiles("patch_embed", family):
        args = (
            video, new(d, k + -k % 64), new(s.patches, d), new(d), new(d), new(d), s.patch, EPS,
            tile,
        )  # fmt: skip
        counts = patch_embed.bytes_and_flops(
            s.batch * s.frames, s.patches, d, s.patch, dtype.itemsize
        )
        yield _case("patch_embed", "", tile, patch_embed, args, counts)


def _rest(family: str, dtype: torch.dtype, device: str, s: Shape, full: bool) -> Iterator[Case]:
    new, d, f = _empty(device, dtype), s.width, s.batch * s.frames
    trunk, rows = new(f, s.patches + 1, d), new(f * s.patches + s.batch, d)
    size = dtype.itemsize
    for start in (True, False):
        tables = (
            (None, new(s.patches, d), new(64, d), new(d)) if start else (rows, None, None, None)
        )
        counts = branch_merge.bytes_and_flops(
            s.batch, s.frames, s.patches, d, start=start, size=size
        )
        name = "start" if start else "merge"
        yield _case("branch_merge", name, None, branch_merge, (trunk, *tables, s.batch), counts)
    counts = head_rows.bytes_and_flops(s.batch, s.frames, d, size)
    yield _case("head_rows", "", None, head_rows, (trunk, new(s.batch, d), EPS), counts)


def _case(
    operation: str,
    name: str,
    tile: Tile | None,
    module: Any,
    args: tuple[Any, ...],
    counts: tuple[int, int],
) -> Case:
    return Case(operation, name, tile, module, lambda: module.launch(*args), *counts)
