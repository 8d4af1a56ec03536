"""The kernels against their peers, each as a share of its floor (see gpu_suite)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_timing import CALLS, Device, interleave
from benchmarks.kernel_cases import EPS, Shape
from stan_infer.kernels import (
    cls_attention,
    fp8_linear,
    linear,
    patch_embed,
    spatial_attention,
    temporal_attention,
    temporal_qkv_attention,
)
from stan_infer.network.eight_bits import quantise_weight
from stan_infer.network.kernel_ops import library_linear

L2_BYTES = 64 * 2**20  # an H100 has 50 MiB
# name, calls (the first is the library's), bytes and FLOPs of ours, whether in 8 bits
Contest = tuple[str, dict[str, Callable[[], Any]], tuple[int, int], bool]


def contests(s: Shape, device: str, dtype: torch.dtype, *, fp8: bool) -> Iterator[Contest]:
    """Each operation as peers do it and as ours do, at the shapes of one network and batch."""
    random = _Random(device, dtype)
    f, d, h, t, p = s.batch * s.frames, s.width, s.heads, s.frames, s.patches
    q = f * p
    qkv = random(q, 3 * d)
    yield (
        "temporal_attention",
        {
            **_temporal_peers(qkv, s),
            "ours": lambda: temporal_attention.temporal_attention(qkv, t, p, h, 0.125),
        },
        temporal_attention.bytes_and_flops(s.batch, t, p, h, s.head),
        False,
    )
    x, w, bias = random(q + s.batch, d), random(3 * d, d), random(3 * d)
    sums = w.float().sum(1)
    args = (x, w, bias, sums, s.batch, t, p, h, 0.125, EPS)

    def linear_then_attention() -> Any:
        rows = F.linear(F.layer_norm(x[:q], (d,)), w, bias)
        return temporal_attention.temporal_attention(rows, t, p, h, 0.125)

    yield (
        "temporal_qkv_attention",
        {
            "library linear, our attention": linear_then_attention,
            "ours": lambda: temporal_qkv_attention.temporal_qkv_attention(*args),
        },
        temporal_qkv_attention.bytes_and_flops(s.batch, t, p, h, s.head),
        False,
    )
    out, out_bias = random(d, d), random(d)

    def block_torch() -> Any:
        rows = F.linear(F.layer_norm(x[:q], (d,)), w, bias)
        return F.linear(_temporal_sdpa(rows, s), out, out_bias) + x[:q]

    def block_ours() -> Any:
        y = temporal_qkv_attention.temporal_qkv_attention(*args)
        return linear.linear(y, out, out_bias, None, x, "", EPS, False)

    ours = temporal_qkv_attention.bytes_and_flops(s.batch, t, p, h, s.head)
    last = linear.bytes_and_flops(q, d, d, residual_rows=q + s.batch)
    counts = (ours[0] + last[0], ours[1] + last[1])
    yield "temporal block", {"torch": block_torch, "ours": block_ours}, counts, False
    counters = torch.zeros(s.batch * h, dtype=torch.int32, device=device)
    branch, trunk = random(q + s.batch, 3 * d), random(f * (p + 1), 3 * d)

    def branch_sdpa() -> Any:
        cls = branch[q:, None, None].expand(-1, t, -1, -1)
        rows = torch.cat([branch[:q].view(s.batch, t, p, -1), cls], 2).flatten(0, 1)
        return _sdpa(rows, h)[:, -1].unflatten(0, (s.batch, t)).mean(1)

    for name, rows, shared, peer in (
        ("spatial_attention, branch", branch, True, branch_sdpa),
        ("spatial_attention, trunk", trunk, False, lambda: _sdpa(trunk.view(f, p + 1, -1), h)),
    ):
        yield (
            name,
            {
                "SDPA": peer,
                "ours": lambda rows=rows, shared=shared: spatial_attention.spatial_attention(
                    rows, counters, s.batch, t, h, 0.125, shared
                ),
            },
            spatial_attention.bytes_and_flops(s.batch, t, p, h, shared=shared, head=s.head),
            False,
        )
    u = random(s.batch, h, d)

    def class_torch() -> Any:
        keys = F.layer_norm(x, (d,))[:q].view(s.batch, t, p, d)
        a = (torch.einsum("bhd,btpd->bthp", u, keys) * 0.125).softmax(-1)
        return torch.einsum("bthp,btpd->bhd", a, keys)

    yield (
        "cls_attention",
        {
            "torch": class_torch,
            "ours": lambda: cls_attention.cls_attention(u, x, s.batch, t, 0.125, EPS),
        },
        cls_attention.bytes_and_flops(s.batch, t, p, h, s.head),
        False,
    )
    yield from _linears(s, random, fp8)
    k = 3 * s.patch**2
    side = round(p**0.5) * s.patch
    video = torch.zeros(s.batch, t, side, side, 3, dtype=torch.uint8, device=device)
    weight, conv = random(d, k + -k % 64), random(d, 3, s.patch, s.patch)
    table, row = random(p, d), random(d)

    def conv_torch() -> Any:
        images = video.flatten(0, 1).permute(0, 3, 1, 2).to(dtype)
        y = F.conv2d(images, conv, stride=s.patch).flatten(2).mT + table
        return torch.cat([F.layer_norm(y, (d,), row, row), row.expand(f, 1, d)], 1)

    yield (
        "patch_embed",
        {
            "convolution": conv_torch,
            "ours": lambda: patch_embed.patch_embed(
                video, weight, table, row, row, row, s.patch, EPS
            ),
        },
        patch_embed.bytes_and_flops(f, p, d, s.patch),
        False,
    )


def measure(
    device: Device, contest: Contest, ceiling: dict[str, float | None], rounds: int
) -> Iterator[dict[str, Any]]:
    """Rows of one contest: time, ratio to the library's way, share of the floor of ours."""
    name, calls, (moved, flops), in_fp8 = contest
    bundles = {}
    for lane, run in calls.items():
        try:
            bundles[lane] = device.bundle(run)
        except Exception as e:
            # A peer that cannot run or be captured here must not cost the others their rows.
            reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
            yield {"operation": name, "lane": lane, "refused": reason}
    if not bundles:
        return
    per_call = CALLS if device.is_cuda else 1
    timed = interleave(device, bundles, rounds=rounds, per_call=per_call, flush=True)
    tflops = ceiling["fp8_tflops" if in_fp8 else "bf16_tflops"]
    assert tflops and ceiling["copy_tbs"]
    floor_ms = max(flops / tflops, moved / ceiling["copy_tbs"]) / 1e9
    for lane, row in timed.items():
        yield {
            "operation": name,
            "lane": lane,
            **row,
            "floor_ms": floor_ms,
            # Calls of a bundle find what fits into the L2 there: memory is then no floor.
            "share_of_floor": floor_ms / row["ms_p50"] if moved > L2_BYTES else None,
            "bytes": moved,
            "flops": flops,
        }


class _Random:
    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self._device).to(self._dtype)


def _sdpa(rows: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = rows.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, scale=0.125).transpose(1, 2).flatten(-2)


def _temporal_sdpa(qkv: torch.Tensor, s: Shape) -> torch.Tensor:
    x = qkv.view(s.batch, s.frames, s.patches, 3, s.heads, s.head)
    q, k, v = x.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # [B P, H, T, dh], copied
    y = F.scaled_dot_product_attention(q, k, v, scale=0.125)
    return y.unflatten(0, (s.batch, s.patches)).permute(0, 3, 1, 2, 4).reshape(len(qkv), -1)


def _temporal_peers(qkv: torch.Tensor, s: Shape) -> dict[str, Callable[[], Any]]:
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
    if qkv.is_cuda:
        for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
            run = with_backend(getattr(SDPBackend, name))
            try:
                run()
            except RuntimeError:
                continue  # this build or GPU has no such backend; the row is then absent
            calls[f"SDPA {name.lower()}"] = run
        try:
            calls["FlexAttention, packed"] = _flex(qkv, s)
        except RuntimeError:
            pass  # it found no configuration that fits, or no memory for its mask
    return calls


def _flex(qkv: torch.Tensor, s: Shape) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    t, rows = s.frames, s.batch * s.patches * s.frames

    def same(b: Any, h: Any, q: Any, k: Any) -> Any:
        return q // t == k // t

    mask = create_block_mask(same, None, None, rows, rows, device=str(qkv.device), _compile=True)
    compiled = torch.compile(flex_attention, dynamic=False)

    def run() -> Any:
        x = qkv.view(s.batch, t, s.patches, 3, s.heads, s.head)
        q, k, v = x.permute(3, 4, 0, 2, 1, 5).reshape(3, 1, s.heads, rows, s.head)
        return compiled(q, k, v, block_mask=mask, scale=0.125)

    run()
    return run


def _linears(s: Shape, random: _Random, fp8: bool) -> Iterator[Contest]:
    d, rows = s.width, s.batch * s.frames * (s.patches + 1)
    for name, n, k, norm, activation, residual in (
        ("linear: qkv with norm", 3 * d, d, True, "", False),
        ("linear: fc1 with norm and silu", 4 * d, d, True, "silu", False),
        ("linear: fc2 with residual", d, 4 * d, False, "", True),
    ):
        x, w, b, r = random(rows, k), random(n, k), random(n), random(rows, n)
        sums = w.float().sum(1) if norm else None

        res = r if residual else None
        library = partial(library_linear, x, w, b, activation, res, EPS if norm else None)
        calls: dict[str, Callable[[], Any]] = {
            "library": library,
            "ours": lambda x=x, w=w, b=b, sums=sums, res=res, activation=activation: linear.linear(
                x, w, b, sums, res, activation, EPS, False
            ),
        }
        moved = linear.bytes_and_flops(rows, n, k, residual_rows=rows if residual else 0)
        yield name, calls, moved, False
        if fp8 and not norm:
            w8, scale = quantise_weight(w, "fp8")
            yield (
                "fp8_linear: fc2 with residual",
                {
                    "library in bf16": library,
                    "ours": lambda x=x, w8=w8, scale=scale, b=b, r=r: fp8_linear.fp8_linear(
                        x, w8, scale, 0.01, b, r, ""
                    ),
                },
                fp8_linear.bytes_and_flops(rows, n, k, residual_rows=rows),
                True,
            )
