"""Which tile a kernel runs with, by GPU and shape. Nothing is tuned at run time.

tuned.json has, per family, start values: each operation's tiles from the largest to the smallest.
The rules below pick one of them, unless "measured" has a row for the shape: what `python -m
benchmarks.gpu.tune --write` found to be fastest on a GPU of this very compute capability
(`chosen`). A tile whose shared memory the GPU does not have is never picked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stan_infer.kernels import rule
from stan_infer.kernels.tile import Tile as Tile

FAMILIES = ("sm80", "sm89", "sm90", "sm100", "sm120")
# Shared memory that one block may have, KiB, by compute capability (CUDA programming guide).
SHARED_KIB = {
    **{"sm80": 163, "sm86": 99, "sm87": 163, "sm89": 99},
    **{"sm90": 227, "sm100": 227, "sm103": 227, "sm110": 227, "sm120": 99, "sm121": 99},
}
RULE = "rule"  # a measured row in which nothing beat the rule
MIN_FILL = 0.8  # share of a tile's rows in use, below which q, k, v get a linear of their own
_NONE_FITS = "no start value of tuned.json fits into this GPU's shared memory"
_TABLE = Path(__file__).with_name("tuned.json")


@cache
def table() -> dict[str, Any]:
    """The content of tuned.json."""
    return json.loads(_TABLE.read_text())


def forget_measured() -> None:
    """Let the rules decide alone in this process, as while they are compared with other tiles."""
    table()["measured"].clear()


@cache
def tiles(operation: str, family: str, size: int = 2) -> tuple[Tile, ...]:
    """The start values of an operation, the largest tile first, of those that a GPU can hold.

    family: of `family`. size: bytes of a value. A GPU without start values of its own has those of
    the newest family that is older.
    """
    start = family
    if family != "cpu":
        known = [f for f in FAMILIES if _number(f) <= _number(family)]
        start = known[-1] if known else FAMILIES[0]
    own = (Tile(*values) for values in table()["tiles"][start][operation])
    return tuple(t for t in own if holds(operation, family, t, size))


@cache
def family(device: torch.device) -> str:
    """The GPU's compute capability, as "sm86"; "cpu" for the interpreter."""
    if device.type != "cuda":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def shared_bytes(operation: str, t: Tile, size: int = 2) -> int:
    """Shared memory of a program, at most: the tiles of every stage, or its parts of attention.

    A test holds it against every compiled configuration. Heads are 64 wide, values of fp8_linear
    take one byte.
    """
    stages = max(t.stages, 1)
    per_step = {
        "linear": (t.bm + t.bn) * t.bk * size,
        "fp8_linear": (t.bm + t.bn) * t.bk,
        "temporal_qkv_attention": (t.bm + 3 * t.bn) * t.bk * size,
        "spatial_attention": 2 * t.bn * 64 * size,
        "cls_attention": (t.bm + 16) * t.bk * size,
        "patch_embed": (t.bm + t.bn) * t.bk * size,
    }
    attention = 3 * t.bm * 64 * size if operation.startswith("temporal") else 0
    own = t.bm * 64 * size if operation == "spatial_attention" else 0
    return max(stages * per_step.get(operation, 0), attention) + own + 1024  # barriers, sums


def holds(operation: str, family: str, tile: Tile, size: int = 2) -> bool:
    """Whether a block of this GPU may have the shared memory that the tile needs."""
    if family == "cpu":
        return True
    known = [sm for sm in SHARED_KIB if _number(sm) <= _number(family)]
    limit = SHARED_KIB[max(known, key=_number, default="sm80")]
    return shared_bytes(operation, tile, size) <= limit * 1024


def has_descriptors(family: str) -> bool:
    """Whether the GPU copies tiles by descriptor, which the persistent form needs."""
    return family != "cpu" and _number(family) >= 90


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors; 1 for the CPU, so that the interpreter gets large tiles."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def chosen(operation: str, family: str, dtype: torch.dtype, **shape: int) -> Any:
    """What was fastest for this shape: a Tile, the name of another way, or None for the rule.

    A row of the table holds for as many `rows` as it has or fewer, down to the next smaller row;
    the last one also holds for more. All else in `shape` must be the row's.
    """
    found = table()["measured"].get(family, {}).get(operation, [])
    if not found:
        return None  # before sizes are compared: they may be symbols while a graph is traced
    fixed = {k: v for k, v in shape.items() if k != "rows"} | {"dtype": _name(dtype)}
    own = sorted((r for r in found if fixed.items() <= r.items()), key=lambda r: r["rows"])
    if not own:
        return None
    best = next((r for r in own if r["rows"] >= shape["rows"]), own[-1])["best"]
    if isinstance(best, str):
        return None if best == RULE else best
    tile = Tile(*best)
    return tile if holds(operation, family, tile, dtype.itemsize) else None


def linear_tile(
    device: torch.device, dtype: torch.dtype, rows: int, n: int, k: int, operation: str = "linear"
) -> Tile:
    """Pick the fastest tile as measured, else by `rule`. operation: or "fp8_linear"."""
    best = chosen(operation, family(device), dtype, rows=rows, n=n, k=k)
    if isinstance(best, Tile):
        return best
    options = tiles(operation, family(device), dtype.itemsize)
    if not options:
        raise ValueError(_NONE_FITS)
    return rule.fastest(options, operation, family(device), processors(device), rows, n, k)


def in_library(
    family: str,
    dtype: torch.dtype,
    rows: int,
    n: int,
    k: int,
    epilogue: rule.Epilogue,
    place: str = "",
) -> bool:
    """Whether a linear runs as the library's: as measured for this shape, else by `rule`.

    place: the linear's name in a layer (rule.LAYER), whose linears are chosen together.
    """
    best = chosen("linear", family, dtype, rows=rows, n=n, k=k)
    if best is not None:
        return best == "library"
    if family == "cpu" or not isinstance(rows, int):
        return False  # in the interpreter, and for symbols while a graph is traced
    size = dtype.itemsize
    own = tiles("fp8_linear" if size == 1 else "linear", family, size)
    if place in rule.LAYER:
        if place not in rule.layer_in_library(family, own, size, rows, min(n, k)):
            return False
        if not epilogue.kept:
            return True
    return rule.in_library(family, own, size, rows, n, k, epilogue)


def temporal_tile(
    device: torch.device, dtype: torch.dtype, frames: int, sequences: int, heads: int, width: int
) -> Tile:
    """Pick the largest tile with two programs per processor, of those that hold a sequence.

    sequences: B P heads; width: of all heads together.
    """
    shape = {"rows": sequences, "frames": frames, "heads": heads, "width": width}
    best = chosen("temporal_attention", family(device), dtype, **shape)
    options = tiles("temporal_attention", family(device), dtype.itemsize)
    programs = 2 * processors(device)
    return _pick(
        best,
        [t for t in options if t.bm >= frames],
        lambda t: -(-sequences // (t.bm // frames)) >= programs,
    )


def fill(bm: int, frames: int) -> float:
    """Share of a tile's BM rows that hold a patch, in all tiles but the last."""
    return bm // frames * frames / bm


def qkv_tiles(family: str, frames: int, size: int = 2) -> list[Tile]:
    """Tiles of temporal_qkv_attention of which at least MIN_FILL of the rows would hold a patch."""
    options = tiles("temporal_qkv_attention", family, size)
    return [t for t in options if fill(t.bm, frames) >= MIN_FILL]


def fuses_qkv(
    family: str, dtype: torch.dtype, frames: int, places: int, heads: int, width: int
) -> bool:
    """Whether one kernel makes temporal q, k, v and attends: measured, or by fill and `rule`."""
    shape = {"rows": places, "frames": frames, "heads": heads, "width": width}
    best = chosen("temporal_qkv_attention", family, dtype, **shape)
    if best is not None:
        return best != "linear"
    own, size = qkv_tiles(family, frames, dtype.itemsize), dtype.itemsize
    if not own or family == "cpu" or not isinstance(places, int):
        return bool(own)
    return rule.fuses_qkv(
        family, own, tiles("linear", family, size), size, places, frames, heads, width
    )


def temporal_qkv_tile(
    device: torch.device, dtype: torch.dtype, frames: int, places: int, heads: int, width: int
) -> Tile:
    """Pick the largest tile with a program per processor, of those with few unused rows."""
    shape = {"rows": places, "frames": frames, "heads": heads, "width": width}
    best = chosen("temporal_qkv_attention", family(device), dtype, **shape)
    options = qkv_tiles(family(device), frames, dtype.itemsize) or [
        t for t in tiles("temporal_qkv_attention", family(device), dtype.itemsize) if t.bm >= frames
    ]
    programs = processors(device)
    return _pick(best, options, lambda t: -(-places // (t.bm // frames)) * heads >= programs)


def trunk_in_kernel(
    family: str, dtype: torch.dtype, frames: int, patches: int, heads: int, width: int
) -> bool:
    """Whether our kernel was measured to beat torch's attention in the trunk; F frames at once."""
    shape = {"rows": frames, "patches": patches, "heads": heads, "width": width}
    return chosen("trunk_attention", family, dtype, **shape) == "kernel"


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
    if not options:
        raise ValueError(_NONE_FITS)
    return next((t for t in options if fits(t)), options[-1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _number(sm: str) -> int:
    return int(sm[2:])
