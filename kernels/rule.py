"""In which form a linear runs and with which tile, by arithmetic: what a GPU measured goes first.

A step of a tile, BK deep, takes at least 2 BM BN BK / tensor cycles on the tensor cores, (BM + BN)
BK size / L2 to load, and instructions x warps / 4 to issue. The last figure, registers and shared
memory are those of the compiled code (compiled.json, which `python -m benchmarks.aot` writes). A
processor holds as many programs as its registers and shared memory allow; while it has work their
steps overlap, and a program alone waits for its loads.
The library's product is held to the same arithmetic, with the best of its tiles, no limit by
instructions, and from sm_90 on with columns that two processors share. Every pass over memory
beside a product counts with its bytes and its launch; of forms that differ by less than NEAR one
with few launches is taken. Rates and shares are those of data sheets and of public
reports, not ours: triton-lang/triton #5726 (a kernel on pointers reaches 0.76 of the library),
#5461 (one on tensor descriptors 13 % more), #6217 (0.65 on sm_100). Times are only compared with
each other.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from stan_infer.kernels.tile import Tile

COMPILED = Path(__file__).with_name("compiled.json")
FEW_ROWS = 64  # products of so few rows read weights, which the library splits best
LIBRARY = 0.75  # of the tensor cores' peak, that the library sustains
L2 = 40  # bytes per cycle that a processor gets from L2
LOAD = 700  # cycles until data from L2 arrive
ENDS = 2500  # cycles before the first and after the last step of a tile
ISSUE = 0.6  # of the tensor cores' time: a large product may spend so much of it issuing
NEAR = 1.1  # times that this model does not tell apart
START_US = 1.5  # of one more kernel in a graph
MORE = 1  # kernels beside a layer's products: a network of 12 layers then launches 132 at most
LIBRARY_TILES = [(128, 256), (128, 128), (64, 128), (64, 64)]
LIBRARY_SPLITS = (1, 2, 4, 8)
# A layer's products by name: columns and depth in widths, and whose rows the norm before it reads.
LAYER = {
    **{"qkv": (3, 1, "fc2"), "out": (1, 1, None)},
    **{"fc1": (4, 1, "out"), "fc2": (1, 4, None)},
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU of a family: what its data sheet says, and what kernels of ours reach.

    tensor: 16-bit FLOP per cycle and processor. memory: TB/s. pointers, descriptors: speed of our
    two forms in the library's.
    """

    processors: int
    ghz: float
    tensor: int
    memory: float
    shared_kib: int
    pointers: float
    descriptors: float


GPUS = {
    "sm80": Gpu(108, 1.41, 2048, 2.0, 164, 0.85, 0.85),  # A100 80 GB
    "sm89": Gpu(142, 2.52, 1024, 0.86, 100, 0.9, 0.9),  # L40S
    "sm90": Gpu(132, 1.75, 4096, 3.35, 228, 0.76, 0.86),  # H100 SXM
    "sm100": Gpu(148, 1.85, 8192, 8.0, 228, 0.65, 0.73),  # B200
    "sm120": Gpu(188, 2.6, 1024, 1.8, 100, 0.9, 0.9),  # RTX PRO 6000
}


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """What stands beside a product: a norm before it, whose sums may be there already; an
    activation; a residual, which other work may need unchanged (kept), and whose stream may carry
    the bias apart (carried)."""

    norm: bool = False
    sums: bool = False
    activation: bool = False
    residual: bool = False
    kept: bool = False
    carried: bool = True


@dataclasses.dataclass(frozen=True)
class Figures:
    """What compiled code says of a tile; issue: cycles per step."""

    issue: float
    registers: int
    shared_bytes: int


def gpu(family: str) -> Gpu:
    """The GPU of a family, or of the newest one that is older."""
    older = [sm for sm in GPUS if int(sm[2:]) <= int(family[2:])]
    return GPUS[older[-1] if older else "sm80"]


def tensor_cycles(family: str, tile: Tile, size: int = 2) -> float:
    """Cycles that the tensor cores need for a step; `size` bytes of a value."""
    return 2 * tile.bm * tile.bn * tile.bk / (gpu(family).tensor * 2 / size)


def product_us(
    family: str, tile: Tile, processors: int, rows: int, n: int, k: int, size: int = 2
) -> float:
    """Time of one product, at least."""
    own = figures(family, tile, "fp8_linear" if size == 1 else "linear")
    programs = -(-rows // tile.bm) * -(-n // tile.bn)
    us = _us(family, tile, own, processors, programs, k, size)
    return max(us, _weights_us(family, n, k, size))


def library_us(family: str, rows: int, n: int, k: int, size: int = 2) -> float:
    """Time of one product of the library, at least, its sum over K split where that is faster."""
    g, found = gpu(family), []
    shared = 2 if int(family[2:]) >= 90 else 1
    for (bm, bn), split in itertools.product(LIBRARY_TILES, LIBRARY_SPLITS):
        tile = Tile(bm, bn, 128 // size, 8, 4)
        loads = (bm + bn / shared) * tile.bk * size / L2
        step = max(tensor_cycles(family, tile, size) / LIBRARY, loads, LOAD / (tile.stages - 1))
        turns = -(-(-(-rows // bm) * -(-n // bn) * split) // g.processors)
        us = (turns * -(-k // (split * tile.bk)) * step + ENDS) / (g.ghz * 1000)
        # The parts are fp32; a kernel of its own adds them.
        found.append(us + (_passes_us(g, rows * n * (8 * split + 2)) if split > 1 else 0.0))
    return max(min(found), _weights_us(family, n, k, size))


def _us(
    family: str,
    tile: Tile,
    own: Figures,
    processors: int,
    programs: int,
    k: int,
    size: int = 2,
    products: int = 1,
) -> float:
    """Time of so many programs, each with so many products of the tile's size at once."""
    g = gpu(family)
    share = LIBRARY * (g.descriptors if tile.persistent else g.pointers)
    loads = (tile.bm + products * tile.bn) * tile.bk * size / L2
    step = max(products * tensor_cycles(family, tile, size) / share, loads, own.issue)
    steps = -(-k // tile.bk)
    per_processor = -(-programs // processors)
    resident = max(1, min(
        65536 // (own.registers * 32 * tile.warps),
        g.shared_kib * 1024 // (own.shared_bytes + 1024),
        64 // tile.warps,
    ))  # fmt: skip
    busy = per_processor * steps * step
    turns = -(-per_processor // resident)
    alone = turns * (steps * max(step, LOAD / max(1, tile.stages - 1)) + ENDS)
    return max(busy + ENDS, alone) / (g.ghz * 1000)


def fastest(
    options: Iterable[Tile], operation: str, family: str, processors: int, rows: int, n: int, k: int
) -> Tile:
    """Pick the first tile whose product takes little more than the least (NEAR).

    Fewer tiles are then in use, each of which is a kernel to compile. The first of the options in
    the interpreter, and while a graph is traced with symbols.
    """
    own = list(options)
    if family == "cpu" or len(own) == 1 or not isinstance(rows, int):
        return own[0]
    size = 1 if operation == "fp8_linear" else 2
    times = [product_us(family, t, processors, rows, n, k, size) for t in own]
    return next(t for t, us in zip(own, times, strict=True) if us <= NEAR * min(times))


def in_library(
    family: str, tiles: Sequence[Tile], size: int, rows: int, n: int, k: int, epilogue: Epilogue
) -> bool:
    """Whether the library's product, with the passes over memory that it needs beside, is faster.

    For a product that stands alone; those of a layer: `layer_in_library`. tiles: of our kernel.
    Ours needs one pass over x for a norm whose sums are not there. The library's needs a pass that
    reads x and writes it normed, one that reads and writes y for an activation, and for a residual
    one that reads y for the sums that ours writes beside; a residual that is kept is copied first,
    and a bias that it does not carry needs an addition.
    """
    if rows <= FEW_ROWS or not tiles:
        return True
    ours = _ours_us(family, tiles, size, rows, n, k, epilogue)
    library = _library_us(family, size, rows, n, k, epilogue)
    return library * (NEAR if _library_passes(rows, n, k, epilogue) else 1.0) < ours


@cache
def layer_in_library(
    family: str, tiles: Sequence[Tile], size: int, rows: int, width: int
) -> frozenset[str]:
    """Names of those products of a layer (LAYER) that the library makes.

    They are chosen together, since each decides what stands beside the next: a norm before the
    library's is a pass, and so are sums that no kernel of ours has written; its activation is one
    more. In 8 bits each form needs the norm's pass, and the library's fc1 two more. The fastest of
    the plans with at most MORE kernels beside the products, unless another is clearly faster.
    """
    if rows <= FEW_ROWS or not tiles:
        return frozenset(LAYER)
    g, plans = gpu(family), []
    shapes = {name: (n * width, k * width) for name, (n, k, _) in LAYER.items()}
    bare = Epilogue()
    ours = {m: _ours_us(family, tiles, size, rows, *own, bare) for m, own in shapes.items()}
    library = {name: library_us(family, rows, *own, size) for name, own in shapes.items()}
    for chosen in itertools.product((False, True), repeat=len(LAYER)):
        inside = frozenset(itertools.compress(LAYER, chosen))
        us, launches = sum((library if m in inside else ours)[m] for m in LAYER), 0
        for name, (n, _, before) in LAYER.items():
            passes = []
            if before and size > 1 and (name in inside or before in inside):
                passes.append((1 + (name in inside)) * rows * width * size)
            if name == "fc1" and name in inside:
                passes += [4 * rows * n * width, *([3 * rows * n * width] if size == 1 else [])]
            us += sum(_passes_us(g, moved) for moved in passes)
            launches += len(passes)
        plans.append((us, launches, inside))
    least = min(us for us, _, _ in plans)
    few = min((p for p in plans if p[1] <= MORE), key=lambda p: p[0])
    return few[2] if few[0] <= NEAR * least else min(plans, key=lambda p: p[0])[2]


def fuses_qkv(
    family: str,
    tiles: Sequence[Tile],
    linears: Sequence[Tile],
    size: int,
    places: int,
    frames: int,
    heads: int,
    width: int,
) -> bool:
    """Whether one kernel that makes temporal q, k, v and attends beats a linear and attention.

    tiles, linears: of that kernel and of `linear`. Beside the linear, attention reads 3 D values of
    every row and writes D. A tile whose instructions are a limit (ISSUE) is for programs that do
    not fill the GPU.
    """
    g, found = gpu(family), []
    for tile in tiles:
        own = figures(family, tile, "temporal_qkv_attention")
        programs = -(-places // (tile.bm // frames)) * heads
        limited = own.issue > ISSUE * 3 * tensor_cycles(family, tile, size)
        if programs <= g.processors or not limited:
            found.append(_us(family, tile, own, g.processors, programs, width, size, 3))
    shape = (size, places * frames, 3 * width, width, Epilogue(norm=True, sums=True))
    apart = min(_library_us(family, *shape), _ours_us(family, linears, *shape))
    apart += _passes_us(g, 4 * places * frames * width * size)
    return bool(found) and min(found) <= NEAR * apart


def _passes_us(g: Gpu, moved: int) -> float:
    """Time of a kernel that does nothing but move so many bytes."""
    return moved / (0.9 * g.memory * 1e6) + START_US


def _ours_us(
    family: str, tiles: Sequence[Tile], size: int, rows: int, n: int, k: int, e: Epilogue
) -> float:
    g = gpu(family)
    best = min(product_us(family, t, g.processors, rows, n, k, size) for t in tiles)
    return best + (_passes_us(g, rows * k * size) if e.norm and not e.sums else 0.0)


def _library_us(family: str, size: int, rows: int, n: int, k: int, e: Epilogue) -> float:
    return library_us(family, rows, n, k, size) + beside_us(family, rows, n, k, e)


def beside_us(family: str, rows: int, n: int, k: int, e: Epilogue) -> float:
    """Time of the passes over memory that the library's product needs beside it."""
    return sum(_passes_us(gpu(family), 2 * v) for v in _library_passes(rows, n, k, e))


def _library_passes(rows: int, n: int, k: int, e: Epilogue) -> list[int]:
    """Values that each pass beside the library's product moves."""
    values = [
        2 * rows * k * e.norm, 2 * rows * n * e.activation, rows * n * e.residual,
        2 * rows * n * e.kept, 3 * rows * n * (e.residual and not e.carried),
    ]  # fmt: skip
    return [v for v in values if v]


def _weights_us(family: str, n: int, k: int, size: int) -> float:
    """Time to read a product's weights from memory."""
    return n * k * size / (0.9 * gpu(family).memory * 1e6)


@cache
def compiled() -> dict[str, Any]:
    """The content of compiled.json: by family and operation, a row per tile."""
    return json.loads(COMPILED.read_text())


@cache
def figures(family: str, tile: Tile, operation: str) -> Figures:
    """The figures of a tile; the tensor cores' half and plain registers where none are recorded."""
    for row in _rows(family, operation):
        if row["tile"] == list(dataclasses.astuple(tile)):
            return Figures(row["issue"], row["registers"], row["shared_bytes"])
    shared = (tile.bm + tile.bn) * tile.bk * 2 * tile.stages
    return Figures(tensor_cycles(family, tile) / 2, 128, shared)


def _rows(family: str, operation: str) -> list[Any]:
    known = [sm for sm in compiled() if int(sm[2:]) <= int(family[2:])]
    return compiled()[known[-1] if known else "sm80"].get(operation, [])
