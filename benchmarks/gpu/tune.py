"""python -m benchmarks.gpu.tune [--write]: time the tiles of the kernels on this GPU.

For each operation and shape of the presets it times every tile that fits, the tile that the rule
picks, and for linears the library, and prints the fastest. --write puts the winners into
kernels/tuned.json, from which the kernels read them. Nothing is tuned at run time.
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

from benchmarks.gpu import cases
from benchmarks.gpu.cases import EPS, SCALE, Case, Shape
from benchmarks.gpu.timing import CALLS, Device, interleave
from stan_infer.kernels import linear, temporal_attention, tuned
from stan_infer.kernels.tuned import Tile
from stan_infer.network.kernel_ops import library_linear

SHAPES = [Shape(b, t, 49, 768, 32) for b, t in itertools.product((1, 8), (8, 12))]
SHAPES += [Shape(b, t, 196, 768, 16) for b, t in itertools.product((1, 8), (8, 12))]
SHAPES += [Shape(b, 12, 256, 1024, 14) for b in (1, 8)]
KEEP = 1.02  # another tile is recorded only if the rule's takes this much longer
Calls = dict[str, Callable[[], Any]]
# Operation, key of its row, calls by name: the rule's is the first.
Choice = tuple[str, dict[str, Any], Calls]


def candidates(operation: str, family: str) -> list[Tile]:
    """The tiles of the family, and these with other depth, warps and stages."""
    found = dict.fromkeys(tuned.tiles(operation, family))
    for tile in list(found):
        depths = [tile.bk] if not tile.bk else [tile.bk // 2, tile.bk, 2 * tile.bk]
        for bk, warps, stages in itertools.product(depths, (4, 8), (2, 3, 4)):
            if bk != 0 and bk < 16:
                continue
            found[dataclasses.replace(tile, bk=bk, warps=warps, stages=stages)] = None
    return list(found)


def choices(shape: Shape, device: str, dtype: torch.dtype, family: str) -> Iterator[Choice]:
    """Every choice for one network and batch, with its candidates."""
    new, s, d = cases.random(dtype, device), shape, shape.width
    kind = {"dtype": str(dtype).removeprefix("torch.")}
    for name, n, k, activation in (
        ("qkv: norm", 3 * d, d, ""),
        ("out: residual", d, d, ""),
        ("fc1: norm, silu", 4 * d, d, "silu"),
        ("fc2: residual", d, 4 * d, ""),
    ):
        case = cases.linear_case(s, new, name, n, k, activation)
        x, w, b, sums, residual = case.args[:5]
        eps = None if sums is None else EPS
        library = partial(library_linear, x, w, b, activation, residual, eps)
        calls = {"rule": case.run, "library": library, **_tiled(case, family)}
        yield "linear", {**kind, "rows": s.rows, "n": n, "k": k}, calls
    t, p, h = s.frames, s.patches, s.heads
    case = cases.temporal(s, new)
    key = {**kind, "rows": s.batch * p * h, "frames": t}
    yield case.operation, key, {"rule": case.run, **_tiled(case, family, t)}
    *_, trunk = cases.spatial(s, new)

    def torch_attention() -> Any:
        q, k, v = trunk.args[0].view(-1, p + 1, 3, h, s.head).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=SCALE)
        return y.transpose(1, 2).flatten(-2)

    key = {**kind, "rows": s.batch * t, "patches": p}
    yield "trunk_attention", key, {"rule": torch_attention, "kernel": trunk.run}
    case = cases.temporal_qkv(s, new)
    x, w, b, sums = case.args[:4]

    def separate() -> Any:
        made = linear.launch(x[: -s.batch], w, b, sums, None, "", EPS, False)
        return temporal_attention.launch(made, t, p, h, SCALE)

    key = {**kind, "rows": s.batch * p, "frames": t}
    calls = {"rule": case.run, "linear": separate, **_tiled(case, family, t)}
    yield case.operation, key, calls


def _tiled(case: Case, family: str, least: int = 0) -> Calls:
    """The call with every candidate tile of at least `least` rows; names are tiles as JSON."""
    tiles = (tile for tile in candidates(case.operation, family) if tile.bm >= least)
    return {_key(tile): dataclasses.replace(case, tile=tile).run for tile in tiles}


def best(device: Device, calls: Calls, rounds: int) -> dict[str, float]:
    """Milliseconds of every call that runs here, the rule's first."""
    bundles = {}
    for name, run in calls.items():
        try:
            bundles[name] = device.bundle(run)
        except Exception as e:
            # Too much shared memory or too many registers, for which the compiler and the driver
            # raise classes of their own: the tile is no candidate on this GPU.
            print(f"  {name}: cannot run here ({str(e).splitlines()[0][:80]})")
    per_call = CALLS if device.is_cuda else 1
    timed = interleave(device, bundles, rounds=rounds, per_call=per_call)
    return {name: row["ms_p50"] for name, row in timed.items()}


def winner(ms: dict[str, float]) -> str | None:
    """Name of the fastest call, or None if the rule's is about as fast."""
    if "rule" not in ms:
        raise RuntimeError("the rule's own tile cannot run here: correct kernels/tuned.json")
    name = min(ms, key=lambda k: ms[k])
    return name if ms["rule"] > KEEP * ms[name] else None


def tune(
    device: Device, family: str, shapes: list[Shape], dtypes: list[torch.dtype], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Rows for "measured" in tuned.json, of one family."""
    found: dict[str, list[dict[str, Any]]] = {}
    for dtype in dtypes:
        for shape in shapes:
            for operation, key, calls in choices(shape, device.name, dtype, family):
                ms = best(device, calls, rounds)
                name = winner(ms)
                fastest = sorted(ms, key=lambda k: ms[k])[:4]
                shown = ", ".join(f"{k} {1e3 * ms[k]:.1f}" for k in fastest)
                print(f"{operation} {key}: {shown} us", flush=True)
                if name is not None:
                    value = json.loads(name) if name.startswith("[") else name
                    found.setdefault(operation, []).append({**key, "best": value})
    return found


def main() -> int:
    """Measure, print, and write with --write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: tiles are timed on an NVIDIA GPU; torch finds none here", file=sys.stderr)
        return 3
    device = Device("cuda")
    family = tuned.family(torch.device("cuda"))
    rows = tune(device, family, SHAPES, [torch.float16, torch.bfloat16], args.rounds)
    if args.write:
        write(Path(tuned.__file__).with_name("tuned.json"), family, rows)
    return 0


def write(path: Path, family: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Replace a family's measured rows; each is on a line, so that diffs can be read."""
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


if __name__ == "__main__":
    sys.exit(main())
