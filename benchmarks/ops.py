"""python -m benchmarks.ops [--tune]: tiles of the kernels, timed on this GPU.

Prints, per operation and shape of the presets, every tile that fits against the one the rule picks,
and for linears the library's; --tune writes the winners into kernels/tuned.json, from which
kernels read them. Nothing is tuned at run time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_timing import CALLS, Device, interleave
from benchmarks.kernel_cases import EPS, Shape
from stan_infer.kernels import (
    linear,
    spatial_attention,
    temporal_attention,
    temporal_qkv_attention,
    tuned,
)
from stan_infer.kernels.tuned import Tile
from stan_infer.network.kernel_ops import library_linear

SHAPES = [Shape(b, t, 49, 768, 32) for b, t in itertools.product((1, 8), (8, 12))]
SHAPES += [Shape(b, t, 196, 768, 16) for b, t in itertools.product((1, 8), (8, 12))]
SHAPES += [Shape(b, 12, 256, 1024, 14) for b in (1, 8)]
KEEP = 1.02  # another tile is written down only where it is this much faster than the rule's
# name, key of its row, calls: the rule's own first
Choice = tuple[str, dict[str, Any], dict[str, Callable[[], Any]]]


def candidates(operation: str, family: str) -> list[Tile]:
    """The family's own tiles, and their neighbours in depth, warps and stages."""
    found = dict.fromkeys(tuned.tiles(operation, family))
    for tile in list(found):
        depths = [tile.bk] if not tile.bk else [tile.bk // 2, tile.bk, 2 * tile.bk]
        for bk, warps, stages in itertools.product(depths, (4, 8), (2, 3, 4)):
            if bk != 0 and bk < 16:
                continue
            found[dataclasses.replace(tile, bk=bk, warps=warps, stages=stages)] = None
    return list(found)


def choices(shape: Shape, device: str, dtype: torch.dtype, family: str) -> Iterator[Choice]:
    """What there is to choose for one network and batch."""

    def new(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device=device).to(dtype)

    s, d = shape, shape.width
    rows, places = s.batch * s.frames * (s.patches + 1), s.batch * s.patches
    name = str(dtype).removeprefix("torch.")
    for n, k, norm, activation in (
        (3 * d, d, True, ""), (d, d, False, ""), (4 * d, d, True, "silu"), (d, 4 * d, False, ""),
    ):  # fmt: skip
        x, w, b = new(rows, k), new(n, k), new(n)
        sums = w.float().sum(1) if norm else None
        r = None if norm else new(rows, n)
        args = (x, w, b, sums, r, activation, EPS, False)

        calls: dict[str, Callable[[], Any]] = {"rule": lambda args=args: linear.launch(*args)}
        eps = EPS if norm else None
        calls["library"] = partial(library_linear, x, w, b, activation, r, eps)
        for tile in candidates("linear", family):
            calls[_key(tile)] = lambda args=args, tile=tile: linear.launch(*args, tile=tile)
        yield "linear", {"dtype": name, "rows": rows, "n": n, "k": k}, calls
    t, p, h = s.frames, s.patches, s.heads
    qkv = new(places * t, 3 * d)
    calls = {"rule": lambda: temporal_attention.launch(qkv, t, p, h, 0.125)}
    for tile in candidates("temporal_attention", family):
        if tile.bm >= t:
            calls[_key(tile)] = lambda tile=tile: temporal_attention.launch(
                qkv, t, p, h, 0.125, tile
            )
    yield "temporal_attention", {"dtype": name, "rows": places * h, "frames": t}, calls
    f, trunk = s.batch * t, new(s.batch * t * (p + 1), 3 * d)
    count = torch.zeros(1, dtype=torch.int32, device=device)

    def torch_attention() -> Any:
        q, k, v = trunk.view(f, p + 1, 3, h, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.125)
        return y.transpose(1, 2).flatten(-2)

    calls = {"rule": torch_attention}
    calls["kernel"] = lambda: spatial_attention.launch(trunk, count, s.batch, t, h, 0.125, False)
    yield "trunk_attention", {"dtype": name, "rows": f, "patches": p}, calls
    x, w, b = new(places * t + s.batch, d), new(3 * d, d), new(3 * d)
    sums = w.float().sum(1)
    given = (x, w, b, sums, s.batch, t, p, h, 0.125, EPS)

    def separate() -> Any:
        made = linear.launch(x[: places * t], w, b, sums, None, "", EPS, False)
        return temporal_attention.launch(made, t, p, h, 0.125)

    calls = {"rule": lambda: temporal_qkv_attention.launch(*given), "linear": separate}
    for tile in candidates("temporal_qkv_attention", family):
        if tile.bm >= t:
            calls[_key(tile)] = lambda tile=tile: temporal_qkv_attention.launch(*given, tile=tile)
    yield "temporal_qkv_attention", {"dtype": name, "rows": places, "frames": t}, calls


def best(device: Device, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of every call that runs here, the rule's first."""
    bundles = {}
    for name, run in calls.items():
        try:
            bundles[name] = device.bundle(run)
        except Exception as e:
            # Too much shared memory, too many registers: the compiler and the driver have classes
            # of their own for it, and the tile is then no candidate here.
            print(f"  {name}: cannot run here ({str(e).splitlines()[0][:80]})")
    per_call = CALLS if device.is_cuda else 1
    timed = interleave(device, bundles, rounds=rounds, per_call=per_call)
    return {name: row["ms_p50"] for name, row in timed.items()}


def winner(ms: dict[str, float]) -> str | None:
    """The fastest call's name, or None where the rule's is about as fast."""
    if "rule" not in ms:
        raise RuntimeError("the rule's own tile cannot run here: correct kernels/tuned.json")
    name = min(ms, key=lambda k: ms[k])
    return name if ms["rule"] > KEEP * ms[name] else None


def tune(
    device: Device, family: str, shapes: list[Shape], dtypes: list[torch.dtype], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Rows of tuned.json's "measured" for one family."""
    found: dict[str, list[dict[str, Any]]] = {}
    for dtype in dtypes:
        for shape in shapes:
            for operation, key, calls in choices(shape, device.name, dtype, family):
                ms = best(device, calls, rounds)
                name = winner(ms)
                shown = ", ".join(
                    f"{k} {1e3 * v:.1f}" for k, v in sorted(ms.items(), key=_by_ms)[:4]
                )
                print(f"{operation} {key}: {shown} us", flush=True)
                if name is not None:
                    value = json.loads(name) if name.startswith("[") else name
                    found.setdefault(operation, []).append({**key, "best": value})
    return found


def main() -> int:
    """Measure, print, and write with --tune."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: tiles are timed on an NVIDIA GPU; torch finds none here", file=sys.stderr)
        return 3
    device = Device("cuda")
    family = tuned.family(torch.device("cuda"))
    rows = tune(device, family, SHAPES, [torch.float16, torch.bfloat16], args.rounds)
    if args.tune:
        write(Path(tuned.__file__).with_name("tuned.json"), family, rows)
    return 0


def write(path: Path, family: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Replace a family's measured rows; one row per line, so that changes can be read."""
    text = path.read_text()
    measured = {**json.loads(text)["measured"], family: rows}
    parts = []
    for name, operations in sorted(measured.items()):
        inner = ",\n".join(
            f'      "{operation}": [\n'
            + ",\n".join(f"        {json.dumps(row)}" for row in found)
            + "\n      ]"
            for operation, found in sorted(operations.items())
        )
        parts.append(f'    "{name}": {{\n{inner}\n    }}')
    head = text[: text.index('  "measured": {')]
    path.write_text(head + '  "measured": {\n' + ",\n".join(parts) + "\n  }\n}\n")


def _key(tile: Tile) -> str:
    return json.dumps(dataclasses.astuple(tile))


def _by_ms(item: tuple[str, float]) -> float:
    return item[1]


if __name__ == "__main__":
    sys.exit(main())
