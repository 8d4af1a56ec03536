"""Calls of every kernel as the network makes them, to compile, time and tune.

The shapes are those of B/16 with T = 12 unless the name of a case says otherwise.
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
    row_norm,
    spatial_attention,
    temporal_attention,
    temporal_qkv_attention,
)
from stan_infer.kernels.row_norm import row_sums, row_sums_reference
from stan_infer.kernels.tuned import Tile, has_descriptors, tiles
from stan_infer.network.kernel_ops import Rows, library_linear
from stan_infer.network.kernel_weights import KernelLinear

EPS, SCALE = 1e-5, 0.125
New = Callable[..., torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call. module: a file of `kernels`; args: the arguments of its `launch` but the tile."""

    operation: str
    name: str
    module: Any
    args: tuple[Any, ...]
    tile: Tile | None = None
    function: str = "launch"
    dependent: bool = False  # of a linear

    def run(self) -> Any:
        """Launch the kernel with the tile of the case, or the one of the rule."""
        launch = getattr(self.module, self.function)
        options = {"dependent": True} if self.dependent else {}
        return launch(*self.args, *([self.tile] if self.tile else []), **options)


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

    @property
    def rows(self) -> int:
        """Rows of the trunk: every frame's patches and its class token."""
        return self.batch * self.frames * (self.patches + 1)


def empty(dtype: torch.dtype, device: str) -> New:
    """Return a function that allocates a tensor of given sizes without filling it."""
    return lambda *sizes, dtype=dtype: torch.empty(*sizes, dtype=dtype, device=device)


def random(dtype: torch.dtype, device: str) -> New:
    """Return a function that makes a tensor of given sizes with normal values, for timing."""
    return lambda *sizes, dtype=dtype: torch.randn(*sizes, device=device).to(dtype)


def cases(
    family: str, dtype: torch.dtype, device: str, shape: Shape = Shape(), *, full: bool = True
) -> Iterator[Case]:
    """Every operation with the tiles of a family.

    full: every tile, and other T, modes and epilogues; else the linears with their first tile.
    """
    new = empty(dtype, device)
    for case in (*linears(shape, new), *fp8_linears(shape, new)):
        every = list(_tiled(case, family))
        yield from every if full else every[:1]
    d = shape.width
    if full:
        gelu = linear_case(shape, new, "fc1: norm, gelu", 4 * d, d, "gelu")
        yield dataclasses.replace(gelu, tile=tiles("linear", family)[0])
        if has_descriptors(family):
            early = linear_case(shape, new, "fc2: residual, dependent", d, 4 * d)
            yield from (dataclasses.replace(c, dependent=True) for c in _tiled(early, family))
        head = linear_case(shape, new, "head: fp32 out", 512, d)
        args = (*head.args[:-2], True, False)
        yield dataclasses.replace(head, args=args, tile=tiles("linear", family)[0])
    for make in (temporal, temporal_qkv):
        operation = make(shape, new).operation
        for tile in tiles(operation, family):
            for t in _frames(tile, tile == tiles(operation, family)[0], full, shape.frames):
                case = make(dataclasses.replace(shape, frames=t), new)
                yield dataclasses.replace(case, tile=tile)
    for case in (*spatial(shape, new), class_attention(shape, new), embed(shape, new)):
        yield from _tiled(case, family)
    if full and dtype == torch.bfloat16 and tiles("fp8_linear", family):
        for case in (temporal(shape, new), temporal_qkv(shape, new), *spatial(shape, new)):
            name, args = f"{case.name} in 8 bits", (*case.args[:-1], 0.01)
            first = tiles(case.operation, family)[0]
            yield dataclasses.replace(case, name=name, args=args, tile=first)
    yield from _edges(shape, new, bool(tiles("fp8_linear", family)))
    if full:  # 16 heads, and rows of weights that are no multiple of 16 bytes
        large = Shape(1, 12, 256, 1024, 14)
        for case in (class_attention(large, new), embed(large, new)):
            yield from _tiled(dataclasses.replace(case, name="L/14"), family)


def linear_case(s: Shape, new: New, name: str, n: int, k: int, activation: str = "") -> Case:
    """A linear [rows, K] -> [rows, N], with a norm or a residual if its name has the word.

    Beside a residual the sums of the result's rows are written, as in the network.
    """
    norm, residual = "norm" in name, "residual" in name
    x, weight = new(s.rows, k), new(n, k) * k**-0.5  # results are of the size of x
    after = new(n, dtype=torch.float32)
    args = (
        x, weight, torch.zeros_like(weight[:, 0]) if residual else new(n),
        weight_sums(weight) if norm else None, row_sums_reference(x, None) if norm else None,
        new(s.rows, n) if residual else None, after if residual else None,
        activation, EPS, False, residual,
    )  # fmt: skip
    return Case("linear", name, linear, args)


def weight_sums(weight: torch.Tensor) -> torch.Tensor:
    """The sums of a weight's rows behind a stream that carries nothing, fp32 [2, N]."""
    sums = weight.float().sum(1)
    return torch.stack([sums, torch.zeros_like(sums)])


def by_library(case: Case) -> Callable[[], Any]:
    """Return a call of the library's form of a linear, with the sums that ours writes beside.

    It adds to a residual of its own in place, as in the network.
    """
    x, weight, bias, sums, _, residual, after, activation = case.args[:8]
    ready = torch.zeros(2, len(weight), device=x.device) if sums is None else sums
    w = KernelLinear("", "", weight, bias, ready, None, after, None)
    eps = None if sums is None else EPS
    stream = None if residual is None else residual.clone()

    def run() -> Any:
        beside = None if stream is None else Rows(stream)
        y = library_linear(Rows(x), w, eps, activation, beside)
        return y if stream is None else (y, row_sums(y, after))

    return run


def linears(s: Shape, new: New) -> Iterator[Case]:
    """The linears of a layer that differ in what is fused with them."""
    d = s.width
    yield linear_case(s, new, "qkv: norm", 3 * d, d)
    yield linear_case(s, new, "fc1: norm, silu", 4 * d, d, "silu")
    yield linear_case(s, new, "fc2: residual", d, 4 * d)


def fp8_linears(s: Shape, new: New) -> Iterator[Case]:
    """The two linears of an MLP: the first rounds what the second reads."""
    d, eight = s.width, torch.float8_e4m3fn
    for name, n, k, activation in (
        ("fc1: silu", 4 * d, d, "silu"),
        ("fc2: residual", d, 4 * d, ""),
    ):
        rest = (None, None, activation, 0.05, False)
        if not activation:
            rest = (new(s.rows, n), new(n, dtype=torch.float32), "", None, True)
        weight, scale = new(n, k, dtype=eight), new(n, dtype=torch.float32)
        args = (new(s.rows, k, dtype=eight), weight, scale, 0.01, new(n), *rest)
        yield Case("fp8_linear", name, fp8_linear, args)


def temporal(s: Shape, new: New) -> Case:
    """Temporal attention of rows that hold q, k and v."""
    qkv = new(s.batch * s.frames * s.patches, 3 * s.width)
    args = (qkv, s.frames, s.patches, s.heads, SCALE, None)
    return Case("temporal_attention", f"T={s.frames}", temporal_attention, args)


def temporal_qkv(s: Shape, new: New) -> Case:
    """Temporal attention that applies the norm and computes q, k and v itself."""
    d, rows = s.width, s.batch * s.frames * s.patches
    x, weight = new(rows + s.batch, d), new(3 * d, d) * d**-0.5
    bias = torch.cat([new(d), torch.zeros_like(weight[: 2 * d, 0])])  # of q alone, as folded
    args = (
        x, weight, bias, weight_sums(weight), row_sums_reference(x, None),
        s.batch, s.frames, s.patches, s.heads, SCALE, EPS, None,
    )  # fmt: skip
    return Case("temporal_qkv_attention", f"T={s.frames}", temporal_qkv_attention, args)


def spatial(s: Shape, new: New) -> Iterator[Case]:
    """Attention of the branch, with one class token per clip, and of the trunk."""
    f = s.batch * s.frames
    counters = new(s.batch * s.heads, dtype=torch.int32).zero_()
    for name, rows in (("branch", f * s.patches + s.batch), ("trunk", s.rows)):
        args = (new(rows, 3 * s.width), counters, s.batch, s.frames, s.heads, SCALE)
        yield Case("spatial_attention", name, spatial_attention, (*args, name == "branch", None))


def class_attention(s: Shape, new: New) -> Case:
    """Attention of the last layer, which has the class token as its only query."""
    rows = s.batch * (s.frames * s.patches + 1)
    args = (new(s.batch, s.heads, s.width), new(rows, s.width), s.batch, s.frames, SCALE, EPS)
    return Case("cls_attention", "", cls_attention, args)


def embed(s: Shape, new: New) -> Case:
    """Patch embedding of frames."""
    d, k, side = s.width, 3 * s.patch**2, round(s.patches**0.5) * s.patch
    video = new(s.batch, s.frames, side, side, 3, dtype=torch.uint8)
    weight, table = new(d, k + -k % 64), new(s.patches, d)
    args = (video, weight, table, new(d), new(d), new(d), s.patch, EPS)
    return Case("patch_embed", "", patch_embed, args)


def _edges(s: Shape, new: New, eight_bits: bool) -> Iterator[Case]:
    """The start of the branch, its merge before each layer, rows of norms and of the head."""
    d, f = s.width, s.batch * s.frames
    c = new(d, dtype=torch.float32)
    trunk, rows = new(f, s.patches + 1, d), new(f * s.patches + s.batch, d)
    tables = (None, new(s.patches, d), new(64, d), new(d))
    yield Case("branch_merge", "start", branch_merge, (trunk, *tables, c, None, s.batch))
    merged = (trunk, rows, None, None, None, c, c, s.batch)
    yield Case("branch_merge", "merge", branch_merge, merged)
    yield Case("head_rows", "", head_rows, (trunk, new(s.batch, d), c, EPS))
    yield Case("row_norm", "norm", row_norm, (rows, c, EPS, None))
    yield Case("row_norm", "sums", row_norm, (rows, c), function="launch_sums")
    if new(1).dtype == torch.bfloat16 and eight_bits:
        yield Case("row_norm", "norm in 8 bits", row_norm, (rows, c, EPS, 0.01))
        yield Case("row_norm", "8 bits", row_norm, (rows, 0.01), function="launch_quantise")


def _tiled(case: Case, family: str) -> Iterator[Case]:
    return (dataclasses.replace(case, tile=tile) for tile in tiles(case.operation, family))


def _frames(tile: Tile, first: bool, full: bool, usual: int) -> Sequence[int]:
    """Frame counts that a tile is compiled for: the usual one; others with the first tile."""
    if not full:
        return (usual,) if tile.bm >= usual else ()
    return [t for t in ((8, 12, 16, 64) if first else (12,)) if tile.bm >= t]
