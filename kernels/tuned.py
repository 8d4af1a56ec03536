"""Which tile a kernel runs with, by GPU family and shape. Nothing is tuned at run time.

tuned.json has, per family, start values: each operation's tiles from the largest to the smallest.
The rules below pick one of them, unless "measured" has a row for the shape: what `python -m
benchmarks.gpu.tune --write` found to be fastest on a GPU (`chosen`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("sm80", "sm89", "sm90", "sm100", "sm120")
MIN_FILL = 0.8  # share of a tile's rows in use, below which q, k, v get a linear of their own
_TABLE = Path(__file__).with_name("tuned.json")


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a program's tile; warps and pipeline stages to compile with."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int


@cache
def table() -> dict[str, Any]:
    """The content of tuned.json."""
    return json.loads(_TABLE.read_text())


@cache
def tiles(operation: str, family: str) -> tuple[Tile, ...]:
    """The start values of an operation, the largest tile first."""
    return tuple(Tile(*values) for values in table()["tiles"][family][operation])


@cache
def family(device: torch.device) -> str:
    """The GPU's family, or the newest known one that is older; "cpu" for the interpreter."""
    if device.type != "cuda":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    known = [f for f in FAMILIES if int(f[2:]) <= 10 * major + minor]
    return known[-1] if known else FAMILIES[0]


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors; 1 for the CPU, so that the interpreter gets large tiles."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def chosen(operation: str, family: str, dtype: torch.dtype, **shape: int) -> Any:
    """What was fastest for this shape: a Tile, the name of another way, or None if not measured.

    A row of the table holds for sizes up to its own; the smallest such row is taken.
    """
    rows = table()["measured"].get(family, {}).get(operation, [])
    if not rows:
        return None  # before sizes are compared: they may be symbols while a graph is traced
    name = str(dtype).removeprefix("torch.")
    fixed = {k: v for k, v in shape.items() if k != "rows"}
    fits = [
        r
        for r in rows
        if r["dtype"] == name
        and all(r[k] == v for k, v in fixed.items())
        and r["rows"] >= shape["rows"]
    ]
    if not fits:
        return None
    best = min(fits, key=lambda r: r["rows"])["best"]
    return best if isinstance(best, str) else Tile(*best)


def linear_tile(device: torch.device, dtype: torch.dtype, rows: int, n: int, k: int) -> Tile:
    """Pick the largest tile that gives every processor a program; else the smallest."""
    best = chosen("linear", family(device), dtype, rows=rows, n=n, k=k)
    options = tiles("linear", family(device))
    return _pick(best, options, lambda t: -(-rows // t.bm) * -(-n // t.bn) >= processors(device))


def library_is_faster(family: str, dtype: torch.dtype, rows: int, n: int, k: int) -> bool:
    """Whether the library's linear was measured to be faster for this shape."""
    return chosen("linear", family, dtype, rows=rows, n=n, k=k) == "library"


def temporal_tile(device: torch.device, dtype: torch.dtype, frames: int, sequences: int) -> Tile:
    """Pick the largest tile with two programs per processor, of those that hold a sequence."""
    best = chosen("temporal_attention", family(device), dtype, rows=sequences, frames=frames)
    options = [t for t in tiles("temporal_attention", family(device)) if t.bm >= frames]
    programs = 2 * processors(device)
    return _pick(best, options, lambda t: -(-sequences // (t.bm // frames)) >= programs)


def fill(bm: int, frames: int) -> float:
    """Share of a tile's BM rows that hold a patch, in all tiles but the last."""
    return bm // frames * frames / bm


def qkv_tiles(family: str, frames: int) -> list[Tile]:
    """Tiles of temporal_qkv_attention of which at least MIN_FILL of the rows would hold a patch."""
    options = tiles("temporal_qkv_attention", family)
    return [t for t in options if fill(t.bm, frames) >= MIN_FILL]


def fuses_qkv(family: str, dtype: torch.dtype, frames: int, places: int) -> bool:
    """Whether one kernel makes temporal q, k, v and attends: measured, or by its tiles' fill."""
    best = chosen("temporal_qkv_attention", family, dtype, rows=places, frames=frames)
    return best != "linear" and (best is not None or bool(qkv_tiles(family, frames)))


def temporal_qkv_tile(
    device: torch.device, dtype: torch.dtype, frames: int, places: int, heads: int
) -> Tile:
    """Pick the largest tile with a program per processor, of those with few unused rows."""
    best = chosen("temporal_qkv_attention", family(device), dtype, rows=places, frames=frames)
    options = qkv_tiles(family(device), frames) or [
        t for t in tiles("temporal_qkv_attention", family(device)) if t.bm >= frames
    ]
    programs = processors(device)
    return _pick(best, options, lambda t: -(-places // (t.bm // frames)) * heads >= programs)


def trunk_in_kernel(family: str, dtype: torch.dtype, frames: int, patches: int) -> bool:
    """Whether our kernel was measured to beat torch's attention in the trunk; F frames at once."""
    best = chosen("trunk_attention", family, dtype, rows=frames, patches=patches)
    return best == "kernel"


def spatial_tile(device: torch.device, patches: int) -> Tile:
    """Pick the smallest tile that holds a frame's patches; else the largest."""
    options = tiles("spatial_attention", family(device))
    return _pick(None, options[::-1], lambda t: t.bm >= patches)


def only_tile(operation: str, device: torch.device) -> Tile:
    """Pick the one tile of an operation that has one."""
    return tiles(operation, family(device))[0]


def _pick(best: Any, options: Sequence[Tile], fits: Callable[[Tile], bool]) -> Tile:
    """What was measured to be best, else the first option that fits, else the last option."""
    if isinstance(best, Tile):
        return best
    return next((t for t in options if fits(t)), options[-1])
