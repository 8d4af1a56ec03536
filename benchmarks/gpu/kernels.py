"""Time the kernels against other ways to compute the same (see suite).

Each is timed in turn with the library's way, at calls whose weights and inputs the GPU's cache does
not hold at the first of CALLS; smaller ones stay there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu import cases
from benchmarks.gpu.cases import EPS, SCALE, New, Shape
from benchmarks.gpu.timing import Device, interleave
from benchmarks.gpu.worker import Steps
from stan_infer.kernels import (
    cls_attention,
    fp8_linear,
    linear,
    patch_embed,
    spatial_attention,
    temporal_attention,
    temporal_qkv_attention,
)

SECONDS = 60.0  # of a candidate, compiling included


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Candidates for one operation, the library's first; bytes and FLOPs of our kernel."""

    operation: str
    candidates: Mapping[str, Callable[[], Any]]
    bytes_and_flops: tuple[int, int]
    in_fp8: bool = False


def comparisons(s: Shape, device: str, dtype: torch.dtype, *, fp8: bool) -> Iterator[Comparison]:
    """Each operation by a library and by our kernels, at the shapes of one network and batch."""
    new = cases.random(dtype, device)
    yield from _temporal(s, new)
    yield from _spatial(s, new)
    case = cases.class_attention(s, new)
    u, x = case.args[:2]

    def class_torch() -> Any:
        keys = F.layer_norm(x, (s.width,))[: -s.batch].unflatten(0, (s.batch, s.frames, s.patches))
        a = (torch.einsum("bhd,btpd->bthp", u, keys) * SCALE).softmax(-1)
        return torch.einsum("bthp,btpd->bhd", a, keys)

    counts = cls_attention.bytes_and_flops(s.batch, s.frames, s.patches, s.heads, s.head)
    yield Comparison("cls_attention", {"torch": class_torch, "ours": case.run}, counts)
    yield from _linears(s, new, fp8)
    case, conv = cases.embed(s, new), new(s.width, 3, s.patch, s.patch)
    video, _, table, gamma, beta, row = case.args[:6]

    def conv_torch() -> Any:
        images = video.flatten(0, 1).permute(0, 3, 1, 2).to(dtype)
        y = F.conv2d(images, conv, stride=s.patch).flatten(2).mT + table
        y = F.layer_norm(y, (s.width,), gamma, beta)
        return torch.cat([y, row.expand(len(y), 1, -1)], 1)

    counts = patch_embed.bytes_and_flops(s.batch * s.frames, s.patches, s.width, s.patch)
    yield Comparison("patch_embed", {"convolution": conv_torch, "ours": case.run}, counts)


def _temporal(s: Shape, new: New) -> Iterator[Comparison]:
    """Temporal attention: given q, k, v; with their linear; with the last linear as well."""
    d, t, p, h = s.width, s.frames, s.patches, s.heads
    q = s.batch * t * p
    case = cases.temporal(s, new)
    counts = temporal_attention.bytes_and_flops(s.batch, t, p, h, s.head)
    calls = {**_temporal_sdpas(case.args[0], s), "ours": case.run}
    yield Comparison("temporal_attention", calls, counts)
    inside = cases.temporal_qkv(s, new)
    x, w, bias = inside.args[:3]

    def qkv() -> torch.Tensor:
        return F.linear(F.layer_norm(x[:q], (d,)), w, bias)

    calls = {
        "library product, our attention": lambda: temporal_attention.launch(
            qkv(), t, p, h, SCALE, None
        ),
        "ours": inside.run,
    }
    counts = temporal_qkv_attention.bytes_and_flops(s.batch, t, p, h, s.head)
    yield Comparison("temporal_qkv_attention", calls, counts)
    out, out_bias = new(d, d), new(d)
    calls = {
        "torch": lambda: F.linear(_temporal_sdpa(qkv(), s), out, out_bias) + x[:q],
        "ours": lambda: linear.launch(
            inside.run(), out, out_bias, None, None, x, None, "", EPS, False, True
        ),
    }
    last = linear.bytes_and_flops(q, d, d, residual_rows=q + s.batch)
    yield Comparison("temporal block", calls, (counts[0] + last[0], counts[1] + last[1]))


def _spatial(s: Shape, new: New) -> Iterator[Comparison]:
    t, p, h = s.frames, s.patches, s.heads
    branch, trunk = cases.spatial(s, new)

    def branch_sdpa() -> Any:
        rows, own = branch.args[0][: -s.batch], branch.args[0][-s.batch :]
        own = own[:, None, None].expand(-1, t, -1, -1)
        rows = torch.cat([rows.view(s.batch, t, p, -1), own], 2).flatten(0, 1)
        return _sdpa(rows, h)[:, -1].unflatten(0, (s.batch, t)).mean(1)

    def trunk_sdpa() -> Any:
        return _sdpa(trunk.args[0].view(s.batch * t, p + 1, -1), h)

    for case, sdpa in ((branch, branch_sdpa), (trunk, trunk_sdpa)):
        counts = spatial_attention.bytes_and_flops(
            s.batch, t, p, h, shared=case is branch, head=s.head
        )
        calls = {"SDPA": sdpa, "ours": case.run}
        yield Comparison(f"spatial_attention, {case.name}", calls, counts)


def _linears(s: Shape, new: New, fp8: bool) -> Iterator[Comparison]:
    for case in cases.linears(s, new):
        x, w, residual, library = *case.args[:2], case.args[5], cases.by_library(case)
        rows = 0 if residual is None else len(residual)
        counts = linear.bytes_and_flops(len(x), *w.shape, residual_rows=rows)
        calls = {"library": library, "ours": case.run}
        yield Comparison(f"linear, {case.name}", calls, counts)
    if fp8:  # the last case of both lists is fc2
        *_, case = cases.fp8_linears(s, new)
        counts = fp8_linear.bytes_and_flops(len(x), *w.shape, residual_rows=rows)
        calls = {"library in bf16": library, "ours": case.run}
        yield Comparison(f"fp8_linear, {case.name}", calls, counts, in_fp8=True)


def measure(device: Device, steps: Steps, comparison: Comparison, sizes: Any, rounds: int) -> None:
    """Time one comparison: every candidate in turn with the first that runs."""
    moved, flops = comparison.bytes_and_flops
    first: dict[str, Callable[[], Any]] = {}
    for name, run in comparison.candidates.items():
        lane = f"{comparison.operation}: {name}"
        if not steps.left(lane):
            if not first:
                with suppress(Exception):  # its row says that it cannot run
                    first[name] = device.bundle(run)
            continue
        with steps.lane(lane, SECONDS) as row:
            row.update(sizes)
            row.update(operation=comparison.operation, candidate=name, bytes=moved, flops=flops)
            row["in_fp8"] = comparison.in_fp8
            own = {name: device.bundle(run)}
            timed = interleave(
                device, {**first, **own}, rounds=rounds, per_call=device.calls, flush=True
            )
            row.update(timed[name])
            first = first or own


def _sdpa(rows: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = rows.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, scale=0.125).transpose(1, 2).flatten(-2)


def _temporal_sdpa(qkv: torch.Tensor, s: Shape) -> torch.Tensor:
    x = qkv.view(s.batch, s.frames, s.patches, 3, s.heads, s.head)
    q, k, v = x.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # [B P, H, T, dh], copied
    y = F.scaled_dot_product_attention(q, k, v, scale=0.125)
    return y.unflatten(0, (s.batch, s.patches)).permute(0, 3, 1, 2, 4).reshape(len(qkv), -1)


def _temporal_sdpas(qkv: torch.Tensor, s: Shape) -> dict[str, Callable[[], Any]]:
    """SDPA on [B P, H, T, dh], copies included, per backend; FlexAttention with a packed mask."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def plain() -> Any:
        return _temporal_sdpa(qkv, s)

    def with_backend(backend: Any) -> Callable[[], Any]:
        def run() -> Any:
            with sdpa_kernel(backend):
                return plain()

        return run

    calls: dict[str, Callable[[], Any]] = {"SDPA with its copies": plain}
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        calls[f"SDPA {name.lower()}"] = with_backend(getattr(SDPBackend, name))
    calls["FlexAttention, packed"] = _flex(qkv, s)
    return calls


def _flex(qkv: torch.Tensor, s: Shape) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    t, rows = s.frames, s.batch * s.patches * s.frames

    def same(b: Any, h: Any, q: Any, k: Any) -> Any:
        return q // t == k // t

    @cache
    def compiled() -> Any:
        device = str(qkv.device)
        mask = create_block_mask(same, None, None, rows, rows, device=device, _compile=qkv.is_cuda)
        attend = torch.compile(flex_attention, dynamic=False) if qkv.is_cuda else flex_attention
        return partial(attend, block_mask=mask, scale=SCALE)

    def run() -> Any:
        x = qkv.view(s.batch, t, s.patches, 3, s.heads, s.head)
        q, k, v = x.permute(3, 4, 0, 2, 1, 5).reshape(3, 1, s.heads, rows, s.head)
        return compiled()(q, k, v)

    return run
