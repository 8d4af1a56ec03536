"""The documents' tables about GPUs: what was counted without one, and what was measured on one."""

from __future__ import annotations

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
