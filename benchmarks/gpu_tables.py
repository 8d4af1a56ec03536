"""The documents' tables about GPUs: what was counted without one, and what was measured on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.packed import ways
from benchmarks.record import read_rows


def packed_table() -> str:
    """One temporal layer of B/16, eight clips of 12 frames, by the ways that there are."""
    lines = ["| B/16, 8 clips of 12 frames, one layer, bf16 | MB moved | scores used |"]
    lines += ["|---|---|---|"]
    for row in ways(8, 12, 196, 768):
        lines.append(f"| {row['way']} | {row['mb']:.0f} | {100 * row['useful']:.1f} % |")
    return "\n".join(lines)


def gpu_table() -> str:
    """Launches, bytes and floors of the network on the kernels, beside what was measured."""
    lines = ["| T = 12 | launches | GFLOP | MB moved | floor, H100 (arithmetic) | measured |"]
    lines += ["|---|---|---|---|---|---|"]
    measured = [r for r in read_rows("gpu") if r.get("lane") == "triton" and "ms_p50" in r]
    for r in read_rows("launches"):
        shape = ("model", "batch", "frames")
        own = [m for m in measured if all(m[k] == r[k] for k in shape)]
        cell = "; ".join(f"{m['gpu']}: {m['ms_p50']:.2f} ms" for m in own) or "not measured"
        lines.append(
            f"| {r['model']}, B = {r['batch']} | {r['launches']} | {r['gflop']:.0f} "
            f"| {r['mb']:.0f} | {r['floor_h100_ms']:.2f} ms | {cell} |"
        )
    return "\n".join(lines)


Row = dict[str, Any]
Find = Callable[..., "Row | None"]
BLOCK = {"operation": "temporal block", "batch": 8, "frames": 12, "patches": 196}
A = {"operation": "temporal_attention", "batch": 8, "patches": 196}
B16, B32 = {"model": "stan-b16", "batch": 8, "frames": 12}, {"model": "stan-b32", "batch": 1}
L14 = {"model": "stan-l14", "batch": 8, "frames": 12}


def _ms(find: Find, **keys: Any) -> float | None:
    row = find(**keys)
    return None if row is None else row["ms_p50"]


def _over(find: Find, way: str, other: str, **keys: Any) -> float | None:
    """How many times faster `way` is than `other`, of one interleaved run."""
    slow = find(lane=other, **keys)
    fast = slow and find(lane=way, unit=slow["unit"], **keys)
    return slow["ms_p50"] / fast["ms_p50"] if slow and fast else None


# What an H100 must reach, the figure asked for (a ceiling where negative), how to find it in rows.
TARGETS: list[tuple[str, float, Callable[[Find], float | None]]] = [
    ("B/16, B = 8, T = 12: at most 9.4 ms", -9.4, lambda f: _ms(f, lane="triton", **B16)),
    (
        "the same against torch.compile max-autotune: 1.2x",
        1.2,
        lambda f: _over(f, "triton", "compile max-autotune", **B16),
    ),
    (
        "L/14, B = 8, T = 12 against max-autotune: 1.1x",
        1.1,
        lambda f: _over(f, "triton", "compile max-autotune", **L14),
    ),
    (
        "B/32, B = 1, T = 12: at most 0.33 ms",
        -0.33,
        lambda f: _ms(f, lane="triton", frames=12, **B32),
    ),
    (
        "the same against max-autotune: 1.3x",
        1.3,
        lambda f: _over(f, "triton", "compile max-autotune", frames=12, **B32),
    ),
    (
        "packed attention, T = 12: 85 % of its floor",
        0.85,
        lambda f: (f(lane="ours", frames=12, **A) or {}).get("share_of_floor"),
    ),
    (
        "packed attention, T = 12, against SDPA and its copies: 2x",
        2.0,
        lambda f: _over(f, "ours", "SDPA with its copies", frames=12, **A),
    ),
    (
        "packed attention, T = 64, against SDPA and its copies: 1x",
        1.0,
        lambda f: _over(f, "ours", "SDPA with its copies", frames=64, **A),
    ),
    (
        "temporal block of B/16, B = 8, T = 12: at most 0.14 ms",
        -0.14,
        lambda f: _ms(f, lane="ours", **BLOCK),
    ),
]


def targets_table() -> str:
    """Each target, and what the newest H100 rows say of it."""
    rows = [r for r in read_rows("gpu") if "H100" in r["gpu"] and "ms_p50" in r]

    def find(**keys: Any) -> Row | None:
        return next((r for r in reversed(rows) if keys.items() <= r.items()), None)

    lines = ["| target on an H100 | measured | |", "|---|---|---|"]
    for text, limit, value in TARGETS:
        found = value(find)
        if found is None:
            lines.append(f"| {text} | not measured | |")
            continue
        met = found <= -limit if limit < 0 else found >= limit
        lines.append(f"| {text} | {found:.3g} | {'met' if met else 'not met'} |")
    return "\n".join(lines)


def plans_table() -> str:
    """What building plans took: the newest run of each model, graph and precision."""
    newest = {(r["model"], r["role"], r["precision"]): r for r in read_rows("plans")}
    if not newest:
        return "not measured"
    last = list(newest.values())[-1]
    machine = last["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, TensorRT-RTX {last['tensorrt_rtx']}, "
        f"{last['date']}:",
        "",
        "| model, graph | precision | profiles | ONNX MiB | plan MiB | build s | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, role, precision), r in newest.items():
        lines.append(
            f"| {model}, {role} | {precision} | {r['profiles']} | {r['onnx_mib']:.1f} "
            f"| {r['plan_mib']:.1f} | {r['build_s']:.1f} | {r['build_peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def aot_table() -> str:
    """What the compiler made of the kernels, per family: the worst of all configurations."""
    rows = read_rows("aot")
    lines = ["| | kernels | registers, most | spills | shared memory, most | tensor cores |"]
    lines += ["|---|---|---|---|---|---|"]
    for family in dict.fromkeys(r["family"] for r in rows):
        own = [r for r in rows if r["family"] == family]
        used = sorted({name for r in own for name in r["tensor"]})
        shared = max(r["shared_bytes"] for r in own) / 1024
        lines.append(
            f"| sm_{family[2:]} | {len(own)} | {max(r['registers'] for r in own)} "
            f"| {sum(r['spills'] for r in own)} | {shared:.0f} KiB | {', '.join(used)} |"
        )
    return "\n".join(lines)
