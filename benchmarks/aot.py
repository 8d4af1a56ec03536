"""python -m benchmarks.aot [--check]: compile every shipped kernel configuration without a GPU.

Each call is specialised as at run time and compiled by Triton and NVIDIA's assembler for sm_80,
sm_89, sm_90, sm_100 and sm_120. A row has what the machine code says: registers, spills (stores to
and loads from local memory), shared memory, which the compiler does not compare with what a block
of that architecture may have, and tensor-core instructions. Writes benchmarks/results/aot.jsonl;
--check compares with that file, and exits with 4 if anything spills, does not fit or has become
worse.

A row that is recorded for the same code and Triton is not compiled again: its code is a hash of the
kernel's source and that of what it calls, the types and values it is specialised for, and the
compiler's options. --check compiles each kernel once even so; --all compiles everything.

"loop" is the innermost loop with tensor-core instructions: its instructions, those that exchange
values between threads (SHFL), bulk loads (TMA), and cycles per step to issue and on the tensor
cores (`rule`). Those of products also go to kernels/compiled.json, from which `rule` reads them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
import triton.compiler
from rich.progress import track
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.gpu import without_gpu
from benchmarks.gpu.cases import Case, cases
from benchmarks.record import RESULTS
from stan_infer.kernels.rule import COMPILED, tensor_cycles
from stan_infer.kernels.tiles import INTERPRETED
from stan_infer.kernels.tuned import FAMILIES, SHARED_KIB, Tile

PATH = RESULTS / "aot.jsonl"
TENSOR = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|QMMA|QGMMA|UTCQMMA|OMMA|UTCOMMA)\b")
CODE = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);")
BRANCH = re.compile(r"\bBRA\S* (?:!?U?P\w+, )?0x([0-9a-f]+)")
LOCAL = re.compile(r"\b(STL|LDL)\b")
# Kernels that multiply matrices, and so must use tensor cores.
MATMULS = {"_linear_kernel", "_linear_persistent_kernel"}
MATMULS |= {"_temporal_kernel", "_temporal_qkv_kernel"}
MATMULS |= {"_spatial_kernel", "_partial_kernel", "_patches_kernel"}
PRODUCTS = ("linear", "fp8_linear", "temporal_qkv_attention")  # whose figures `rule` reads
Known = Mapping[str, dict[str, Any]]  # recorded rows by key
WORSE = 1.10  # registers or shared memory beyond this ratio of the recorded value are a regression


class _Specialised:
    """A call of a kernel that is ready to be compiled; takes the place of triton.compiler.compile.

    code: the hash of all that decides what the compiler makes of it, but its version.
    """

    def __init__(self, src: Any, target: GPUTarget, options: dict[str, Any]) -> None:
        self.compile = functools.partial(_compile, src, target=target, options=options)
        parsed = triton.compiler.make_backend(target).parse_options(dict(options))
        text = f"{src.hash()} {parsed.hash()} {target.arch}"
        self.code = hashlib.sha256(text.encode()).hexdigest()[:16]


_compile = triton.compiler.compile


def jobs() -> list[tuple[str, str, int]]:
    """Family, dtype and index of every case: all in bf16, the usual frames in fp16."""
    found = []
    for family in FAMILIES:
        for dtype, full in (("bfloat16", True), ("float16", False)):
            n = sum(1 for _ in _cases(family, dtype, full))
            found += [(family, dtype, i) for i in range(n)]
    return found


def compile_case(job: tuple[str, str, int], known: Known | None = None) -> list[dict[str, Any]]:
    """Rows of one case, one per kernel that it launches; those of `known` are not compiled."""
    family, dtype, index = job
    case = list(_cases(family, dtype, dtype == "bfloat16"))[index]
    tile = list(dataclasses.astuple(case.tile)) if case.tile else None
    head = {"operation": case.operation, "case": case.name, "family": family, "dtype": dtype}
    rows = []
    for name, specialised in calls(case, family):
        code, version = specialised.code, triton.__version__
        row = {"kind": "aot", **head, "tile": tile, "kernel": name, "code": code, "triton": version}
        before = (known or {}).get(_key(row), {})
        if any(before.get(key) != row[key] for key in ("code", "triton")):
            row |= _read(specialised.compile())
            if row["loop"] and case.tile:
                row["loop"] |= _cycles(row, case.tile)
        else:
            row = before
        rows.append(row)
    return rows


def calls(case: Case, family: str) -> list[tuple[str, _Specialised]]:
    """The kernels that a case launches, by name, specialised for a GPU family."""
    triton.compiler.compile = _Specialised
    _forget_lines()
    found: list[tuple[str, _Specialised]] = []

    def record(kernel: JITFunction, *args: Any, **options: Any) -> None:
        found.append((kernel.fn.__name__, kernel.warmup(*args, **options)))

    with without_gpu.launches(family, record):
        case.run()
    return found


def _forget_lines() -> None:
    """Let a kernel's code be the same wherever it stands in its file."""
    for name, module in list(sys.modules.items()):
        if name.startswith("stan_infer.kernels."):
            for kernel in vars(module).values():
                if isinstance(kernel, JITFunction):
                    kernel.starting_line_number = 0


def to_compile_again(rows: Sequence[dict[str, Any]]) -> set[str]:
    """Keys of one row of each kernel, of another family in turn: compiled although recorded."""
    chosen = set()
    for i, name in enumerate(sorted({r["kernel"] for r in rows})):
        own = [r for r in rows if r["kernel"] == name]
        families = sorted({r["family"] for r in own})
        family = families[i % len(families)]
        chosen.add(_key(next(r for r in own if r["family"] == family)))
    return chosen


def problems(row: dict[str, Any], before: dict[str, Any] | None) -> Iterator[str]:
    """What is wrong with a row in itself, and what is worse than in the recorded row."""
    tile = row["tile"] or [0, 0, 0, 4, 0]
    if row["spills"]:
        yield f"{row['spills']} spill instructions"
    if row["shared_bytes"] > SHARED_KIB[row["family"]] * 1024:
        allowed = SHARED_KIB[row["family"]]
        yield f"{row['shared_bytes']} bytes of shared memory, {allowed} KiB allowed"
    if row["kernel"] in MATMULS and not row["tensor"]:
        yield "no tensor-core instruction"
    warp_group = row["kernel"] in MATMULS and tile[0] >= 64 and tile[3] >= 4
    wanted = {"sm90": ("HGMMA", "QGMMA"), "sm100": ("UTCHMMA", "UTCQMMA")}.get(row["family"])
    # The class query's tile has 16 columns of queries in the place of 64 rows.
    if wanted and warp_group and row["kernel"] != "_partial_kernel":
        if not any(name in row["tensor"] for name in wanted):
            yield f"{row['tensor']} where {' or '.join(wanted)} was expected"
    if before is None:
        yield "not recorded: run python -m benchmarks.aot"
        return
    if row.get("triton") != before.get("triton"):
        return  # the figures of another version of the compiler are not compared
    if row.get("code") != before.get("code"):
        yield "recorded for other code: run python -m benchmarks.aot"
    for key in ("registers", "shared_bytes"):
        if row[key] > WORSE * before[key]:
            yield f"{key} {row[key]}, recorded {before[key]}"


def main() -> int:
    """Compile, print, and record or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--all", action="store_true", help="compile what is recorded, too")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if INTERPRETED:
        sys.exit("error: TRITON_INTERPRET is set; nothing is compiled then")
    if args.check and not PATH.exists():
        sys.exit(f"error: {PATH.name} is not here: python -m benchmarks.aot records it")
    recorded = {_key(r): r for r in map(json.loads, _lines())}
    again = to_compile_again(list(recorded.values())) if args.check else set()
    known = {} if args.all else {k: r for k, r in recorded.items() if k not in again}
    todo = jobs()
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        results = pool.imap(functools.partial(compile_case, known=known), todo, chunksize=4)
        rows = [row for found in track(results, "compiling", len(todo)) for row in found]
    compiled = sum(r != known.get(_key(r)) for r in rows)
    if not args.check:
        recorded = {_key(r): r for r in rows}
    bad = [f"{_key(r)}: {p}" for r in rows for p in problems(r, recorded.get(_key(r)))]
    gone = recorded.keys() - {_key(r) for r in rows}
    bad += [f"{k}: recorded, but no longer shipped" for k in sorted(gone)]
    if not args.check:
        PATH.write_text("".join(json.dumps(r, sort_keys=True) + "\n" for r in rows))
        COMPILED.write_text(figures(rows))
    elif COMPILED.read_text() != figures(rows):
        bad.append(f"{COMPILED.name} has other figures: run python -m benchmarks.aot")
    versions = {r.get("triton") for r in recorded.values()}
    if versions != {triton.__version__}:
        print(f"recorded with triton {versions}, this is {triton.__version__}: not compared")
    print(
        f"{len(rows)} kernels for {', '.join(FAMILIES)}, {compiled} compiled; {len(bad)} problems"
    )
    for line in bad:
        print(line)
    return 4 if bad else 0


def figures(rows: Sequence[dict[str, Any]]) -> str:
    """The content of compiled.json: the worst figures of every tile of a product, in bf16."""
    found: dict[str, Any] = {}
    for r in rows:
        if r["operation"] not in PRODUCTS or r["dtype"] != "bfloat16":
            continue
        own = found.setdefault(r["family"], {operation: {} for operation in PRODUCTS})
        tiles = own[r["operation"]]
        new = {"issue": r["loop"]["issue"]} | {k: r[k] for k in ("registers", "shared_bytes")}
        old = tiles.get(str(r["tile"]), new)
        worst = {key: max(new[key], old[key]) for key in new}
        tiles[str(r["tile"])] = {"tile": r["tile"], **worst}
    lists = {sm: {op: list(t.values()) for op, t in own.items()} for sm, own in found.items()}
    return json.dumps(lists, indent=1) + "\n"


def _cycles(row: dict[str, Any], tile: Tile) -> dict[str, float]:
    """Cycles of a step, to issue and on the tensor cores; q, k and v are three products."""
    size = 1 if row["operation"] == "fp8_linear" else 2
    products = 3 if row["kernel"] == "_temporal_qkv_kernel" else 1
    return {
        "issue": row["loop"]["instructions"] * tile.warps / 4,
        "tensor": products * tensor_cycles(row["family"], tile, size),
    }


def main_loop(sass: str) -> dict[str, int] | None:
    """What the shortest loop with tensor-core instructions consists of; None without a loop."""
    code = [(int(m[1], 16), m[2]) for m in CODE.finditer(sass)]
    best: list[str] | None = None
    for at, text in code:
        branch = BRANCH.search(text)
        if branch is None or int(branch[1], 16) >= at:
            continue
        body = [t for a, t in code if int(branch[1], 16) <= a <= at]
        if any(map(TENSOR.search, body)) and (best is None or len(body) < len(best)):
            best = body
    if best is None:
        return None
    counts = {"shuffles": "SHFL", "bulk_loads": "UTMALDG"}
    found = {key: sum(word in text for text in best) for key, word in counts.items()}
    return {"instructions": len(best), **found}


def _cases(family: str, dtype: str, full: bool) -> Iterator[Case]:
    return cases(family, getattr(torch, dtype), "cpu", full=full)


def _lines() -> list[str]:
    return PATH.read_text().splitlines() if PATH.exists() else []


def _key(row: dict[str, Any]) -> str:
    names = ("operation", "case", "family", "dtype", "tile", "kernel")
    return " ".join(str(row[k]) for k in names)


def _read(compiled: Any) -> dict[str, Any]:
    """Read the machine code with NVIDIA's disassembler, which Triton ships."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage = _cuobjdump("-res-usage", path)
        sass = _cuobjdump("-sass", path)
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"cuobjdump printed no register count: {usage[:200]}")
    tensor: dict[str, int] = {}
    for name in TENSOR.findall(sass):
        tensor[name] = tensor.get(name, 0) + 1
    return {
        "registers": int(registers[1]),
        "spills": len(LOCAL.findall(sass)),
        "shared_bytes": compiled.metadata.shared,
        "tensor": tensor,
        "loop": main_loop(sass),
    }


def _cuobjdump(option: str, path: Path) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    done = subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
