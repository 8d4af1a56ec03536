"""python -m benchmarks.gpu.tune [--write] [--minutes 20]: time the kernels' tiles on this GPU.

For each operation and shape of the presets, the most valuable first, it times in turn what the rule
picks and every other way: tiles, and for linears the library. What differs from a reference cannot
win. Weights come from memory, as in a network, whose layers each have their own: those of a bundle
rotate, and the cache is flushed before it. Each candidate is written as soon as it is timed, each
shape with its winner as soon as that is known; a run that was stopped or killed goes on when it is
started again. While one is timed, as many processes as there are processors compile the next
(`ahead`). --write also puts the winners into kernels/tuned.json, from which the kernels read
them. Nothing is tuned at run time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from benchmarks.gpu import cases
from benchmarks.gpu.ahead import Ahead, compile_way
from benchmarks.gpu.cases import EPS, SCALE, Case, Shape
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.runner import END, Unit
from benchmarks.gpu.timing import Device, interleave
from benchmarks.gpu.worker import Steps
from stan_infer.kernels import linear, temporal_attention, tuned
from stan_infer.kernels.tuned import RULE, Tile

Row = dict[str, Any]
# Networks and batches, the most valuable first; then operations, those of most time first.
SHAPES = [Shape(8, 12, 196, 768, 16), Shape(1, 12, 49, 768, 32), Shape(8, 12, 256, 1024, 14)]
SHAPES += [Shape(1, 12, 196, 768, 16), Shape(1, 12, 256, 1024, 14), Shape(8, 12, 49, 768, 32)]
SHAPES += [Shape(b, 8, p, 768, s) for p, s in ((196, 16), (49, 32)) for b in (8, 1)]
DTYPES = ("float16", "bfloat16")  # the engine's usual one first
CHOICES = ("fc1", "fc2", "qkv", "temporal_qkv", "out", "trunk", "temporal")
# Columns and depth as multiples of the width; the rest is the name and the activation of the case.
LINEARS = {
    "qkv": (3, 1, "qkv: norm", ""),
    "out": (1, 1, "out: residual", ""),
    "fc1": (4, 1, "fc1: norm, silu", "silu"),
    "fc2": (1, 4, "fc2: residual", ""),
}
KEEP = 1.02  # another way wins only if the rule's takes this much longer
MOST = 48  # candidates of a shape
SECONDS = 40.0  # of a candidate, compiling included
TOLERANCE = {"float16": 5e-3, "bfloat16": 3e-2, "float32": 1e-4}  # relative to the largest value
# Tiles that are tried beside the start values: rows and columns, depths, warps, stages.
LARGE = [(256, 128), (128, 256), (128, 128), (64, 256), (64, 128), (128, 64), (64, 64)]
GRIDS: dict[str, tuple[Sequence[tuple[int, int]], Sequence[int], Sequence[int], Sequence[int]]] = {
    "linear": ([*LARGE, (32, 64), (16, 64), (16, 32)], (32, 64, 128), (4, 8), (2, 3, 4, 5)),
    "temporal_qkv_attention": ([(128, 64), (64, 64)], (32, 64, 128), (4, 8), (2, 3, 4)),
    "temporal_attention": ([(m, 64) for m in (16, 32, 64, 128)], (0,), (1, 2, 4, 8), (1,)),
}
# Values of a tile's further fields that start values are tried with, too.
FURTHER = {"maxnreg": (128,), "persistent": (True,)}


def key(shape: Shape, choice: str, dtype: str) -> tuple[str, Row]:
    """The operation of a choice, and what a measured row of it holds for."""
    s, d, head = shape, shape.width, {"dtype": dtype}
    if choice in LINEARS:
        n, k, *_ = LINEARS[choice]
        return "linear", {**head, "rows": s.rows, "n": n * d, "k": k * d}
    head |= {"heads": s.heads, "width": d}
    if choice == "trunk":
        return "trunk_attention", {**head, "rows": s.batch * s.frames, "patches": s.patches}
    places, head = s.batch * s.patches, {**head, "frames": s.frames}
    if choice == "temporal":
        return "temporal_attention", {**head, "rows": places * s.heads}
    return "temporal_qkv_attention", {**head, "rows": places}


def units(*, dry: bool = False) -> Iterator[Unit]:
    """Every shape that is tuned, once; dry: a tiny one."""
    seen = set()
    shapes, dtypes = ([Shape(2, 3, 4, 32, 8, 16)], ("float32",)) if dry else (SHAPES, DTYPES)
    for shape, dtype, choice in itertools.product(shapes, dtypes, CHOICES):
        operation, found = key(shape, choice, dtype)
        name = f"{operation} {json.dumps(found)}"
        if name not in seen:
            seen.add(name)
            spec = {"shape": dataclasses.asdict(shape), "choice": choice, "dtype": dtype}
            yield Unit(name, "tune", {**spec, "most": 5 if dry else MOST})


def candidates(operation: str, family: str, shape: Row, size: int, sms: int) -> list[Tile]:
    """Start values, these with FURTHER fields, and other tiles, the most promising first.

    None needs more shared memory than the GPU has, or more registers than there are. shape: a
    measured row's key; size: bytes of a value; sms: the GPU's processors.
    """
    start = list(tuned.tiles(operation, family, size))
    found = dict.fromkeys(start)
    fields = {f.name for f in dataclasses.fields(Tile)} if operation == "linear" else set()
    for name, values in FURTHER.items():
        if name in fields and (name != "persistent" or tuned.has_descriptors(family)):
            found |= dict.fromkeys(
                dataclasses.replace(t, **{name: v}) for t in start for v in values
            )
    others = []
    for (bm, bn), bk, warps, stages in itertools.product(*GRIDS[operation]):
        tile = Tile(bm, bn, bk, warps, stages)
        wide = 3 if operation == "temporal_qkv_attention" else 1
        per_thread = wide * bm * bn // (32 * warps)
        if 8 <= per_thread <= 200 and tuned.holds(operation, family, tile, size):
            others.append(tile)
    rows, columns = shape["rows"], shape.get("n", 1)

    def waste(t: Tile) -> float:
        """Work and traffic of the busiest processor, in values of the result."""
        programs = -(-rows // t.bm) * -(-columns // t.bn)
        return -(-programs // sms) * (t.bm * t.bn + 32 * (t.bm + t.bn))

    return list(found | dict.fromkeys(sorted(others, key=waste)))


def ways(
    shape: Shape, choice: str, dtype: str, device: Device, most: int
) -> tuple[Callable[[], Any], Tile | None, dict[str, list[Callable[[], Any]]]]:
    """The reference of a choice, the rule's tile, and its ways by name.

    The calls of a way have weights of their own each.
    """
    new, s = cases.random(getattr(torch, dtype), device.name), shape
    operation, found = key(shape, choice, dtype)
    case = case_of(s, choice, new)
    reference = functools.partial(getattr(case.module, f"{case.operation}_reference"), *case.args)
    copies = rotated(case, device.calls) if choice not in ("trunk", "temporal") else [case]
    if choice == "trunk":
        return (
            reference,
            None,
            {RULE: [functools.partial(_torch_attention, case, s)], "kernel": [case.run]},
        )
    at, size = torch.device(device.name), getattr(torch, dtype).itemsize
    family, picked = tuned.family(at), by_rule(operation, found, at)
    calls: dict[str, list[Callable[[], Any]]] = {RULE: _with_tile(copies, picked)}
    if choice in LINEARS:
        calls["library"] = [cases.by_library(c) for c in copies]
    if choice == "temporal_qkv":
        calls["linear"] = [functools.partial(_separate, c) for c in copies]
    tiles = candidates(operation, family, found, size, tuned.processors(at))
    least = s.frames if operation.startswith("temporal") else 0
    for tile in [t for t in tiles if t.bm >= least and t != picked][:most]:
        calls[_name(tile)] = _with_tile(copies, tile)
    return reference, picked, calls


def case_of(s: Shape, choice: str, new: cases.New) -> Case:
    """The call of a choice."""
    if choice in LINEARS:
        n, k, name, activation = LINEARS[choice]
        return cases.linear_case(s, new, name, n * s.width, k * s.width, activation)
    if choice == "trunk":
        *_, case = cases.spatial(s, new)
        return case
    return (cases.temporal if choice == "temporal" else cases.temporal_qkv)(s, new)


def by_rule(operation: str, found: Row, at: torch.device) -> Tile:
    """The tile that the rule picks for a measured row's key."""
    dtype, rows = getattr(torch, found["dtype"]), found["rows"]
    if operation == "linear":
        return tuned.linear_tile(at, dtype, rows, found["n"], found["k"])
    pick = tuned.temporal_tile if operation == "temporal_attention" else tuned.temporal_qkv_tile
    return pick(at, dtype, found["frames"], rows, found["heads"], found["width"])


def _with_tile(copies: Sequence[Case], tile: Tile) -> list[Callable[[], Any]]:
    return [dataclasses.replace(c, tile=tile).run for c in copies]


def rotated(case: Case, count: int) -> list[Case]:
    """The case with `count` copies of its weight, which is its second argument."""
    first, weight, *rest = case.args
    return [
        dataclasses.replace(case, args=(first, weight.clone() if i else weight, *rest))
        for i in range(count)
    ]


def measure(
    device: Device, steps: Steps, *, shape: Row, choice: str, dtype: str, most: int
) -> None:
    """Check every way against the reference, and time it in turn with the rule's.

    The next ones are compiled meanwhile.
    """
    tuned.forget_measured()
    with torch.inference_mode():
        reference, picked, calls = ways(Shape(**shape), choice, dtype, device, most)
        wanted = tree_leaves(reference())
    ahead = compilers()
    ahead.drop()  # jobs of a unit that was given up
    family = tuned.family(torch.device(device.name))
    for name in filter(steps.left, calls):
        tile = list(dataclasses.astuple(picked)) if name == RULE and picked else name
        if isinstance(tile, list) or tile.startswith("["):
            values = tile if isinstance(tile, list) else json.loads(tile)
            ahead.add(name, family, shape, choice, dtype, values)
    rule: dict[str, Callable[[], Any]] = {}
    rounds = 1 if device.is_dry else 20
    for name, runs in calls.items():
        if not steps.left(name):
            if name == RULE:
                rule = {RULE: device.bundle(*runs)}
            continue
        with steps.lane(name, SECONDS) as row:
            row["compiled"] = ahead.wait_for(name)
            row["max_rel_error"] = check(runs, wanted, TOLERANCE[dtype])
            own = {name: device.bundle(*runs)}
            timed = interleave(
                device, {**rule, **own}, rounds=rounds, per_call=device.calls, flush=True
            )
            row.update(timed[name])
            if name == RULE:
                rule = own
                if picked is not None:
                    row["tile"] = _name(picked)


@functools.cache
def compilers() -> Ahead:
    """The processes of this one that compile tiles."""
    return Ahead(compile_way)


def check(runs: Sequence[Callable[[], Any]], wanted: Sequence[Any], allowed: float) -> float:
    """The largest difference from the reference, relative; RuntimeError if it is not allowed."""
    worst = 0.0
    for run in (runs[0], runs[-1]):
        with torch.inference_mode(), _poisoned():
            got = tree_leaves(run())
        for a, b in zip(got, wanted, strict=False):
            if b.numel():
                error = float((a.float() - b.float()).abs().max() / b.float().abs().max())
                if not error <= allowed:
                    raise RuntimeError(f"outputs differ by {error:.1e} from the reference")
                worst = max(worst, error)
    return worst


@contextmanager
def _poisoned() -> Iterator[None]:
    """Let outputs be NaN until they are written: memory may hold those of a tile before."""
    empty = torch.empty

    def full_of_nan(*args: Any, **options: Any) -> Any:
        made = empty(*args, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    with mock.patch.object(torch, "empty", full_of_nan):
        yield


def winner(rows: Sequence[Row]) -> str | None:
    """Name of the way that won, from rows of one unit; None if the rule's was not timed."""
    newest = {r["lane"]: r for r in rows}
    found = {name: r["ratios"][RULE] for name, r in newest.items() if RULE in r.get("ratios", {})}
    if "ms_p50" not in newest.get(RULE, {}):
        return None
    name = max(found, key=lambda n: found[n], default=RULE)
    return name if found.get(name, 0.0) > KEEP else RULE


def _separate(case: Case) -> Any:
    x, w, b, sums, stats, batch, t, p, h = case.args[:9]
    made, _ = linear.launch(x[:-batch], w, b, sums, stats, None, None, "", EPS, False, False)
    return temporal_attention.launch(made, t, p, h, SCALE, None)


def _torch_attention(case: Case, s: Shape) -> Any:
    q, k, v = case.args[0].view(-1, s.patches + 1, 3, s.heads, s.head).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, scale=SCALE)
    return y.transpose(1, 2).flatten(-2).flatten(0, 1)


def _name(tile: Tile) -> str:
    return json.dumps(dataclasses.astuple(tile))


def put(path: Path, family: str, operation: str, row: Row) -> None:
    """Put one measured row into a table, in the place of an older one; the file is never half.

    Each row is on a line, so that diffs can be read.
    """
    text = path.read_text()
    measured = json.loads(text)["measured"]
    own = measured.setdefault(family, {}).setdefault(operation, [])
    same = row.keys() - {"best"}
    own[:] = [r for r in own if any(r.get(k) != row[k] for k in same)] + [row]
    own.sort(key=lambda r: json.dumps({**r, "rows": f"{r['rows']:09d}"}, sort_keys=True))
    parts = []
    for name, operations in sorted(measured.items()):
        inner = ",\n".join(
            f'      "{op}": [\n'
            + ",\n".join(f"        {json.dumps(r)}" for r in rows)
            + "\n      ]"
            for op, rows in sorted(operations.items())
        )
        parts.append(f'    "{name}": {{\n{inner}\n    }}')
    head = text[: text.index('  "measured": {')]
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as f:
        f.write(head + '  "measured": {\n' + ",\n".join(parts) + "\n  }\n}\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(beside, path)


def put_winner(rows: Journal, unit: Unit, family: str, path: Path | None) -> None:
    """Print what won a shape, and put it into the table at `path`."""
    own = rows.of(unit.name)
    name = winner(own)
    ms = {r["lane"]: r["ms_p50"] for r in own if "ms_p50" in r}
    shown = ", ".join(f"{n} {1e3 * ms[n]:.1f} us" for n in sorted(ms, key=lambda n: ms[n])[:4])
    print(f"{unit.name}: {name or 'the rule cannot run here'} ({shown})", flush=True)
    if name is not None and path is not None:
        operation, found = key(Shape(**unit.spec["shape"]), unit.spec["choice"], unit.spec["dtype"])
        if name == RULE:
            # Its tile, if it has one: the rule also chooses between this kernel and others.
            name = next(r for r in reversed(own) if r["lane"] == RULE).get("tile", RULE)
        best = json.loads(name) if name.startswith("[") else name
        put(path, family, operation, {**found, "best": best})


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write with --write."""
    from benchmarks.gpu.runner import Runner
    from benchmarks.gpu.suite import arguments, open_journal

    parser = arguments(__doc__, 20)
    parser.add_argument("--write", action="store_true", help="put the winners into the table")
    own_table = Path(tuned.__file__).with_name("tuned.json")
    parser.add_argument("--table", type=Path, default=own_table, help="usually kernels/tuned.json")
    args = parser.parse_args(argv)
    if args.write and args.dry_run and args.table == own_table:
        parser.error("a dry run times nothing: give it a copy of the table, --table FILE")
    with open_journal(args, "gpu-tune", with_table=False) as rows:
        family = rows.common["sm"]
        path = args.table if args.write else None
        found = list(units(dry=args.dry_run))
        for unit in found:
            if rows.of(unit.name, END):  # found by an earlier run, perhaps without --write
                put_winner(rows, unit, family, path)
        runner = Runner(
            rows, args.device, args.minutes, lambda text: print(text, flush=True),
            stand_in=args.dry_run, on_end=lambda unit: put_winner(rows, unit, family, path),
        )  # fmt: skip
        runner.run(found)
    if runner.left:
        print(f"not done in time, start again: {len(runner.left)} shapes", file=sys.stderr)
    newest = {(r["unit"], r["lane"]): r for r in rows.rows}
    return 4 if any("failed" in r for r in newest.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the rows are kept: start again to go on", file=sys.stderr)
        sys.exit(130)
