"""What rows of the suite say: figures relative to the machine's own peak rates, and a table."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import markdown, percent

Row = dict[str, Any]
L2_BYTES = 64 * 2**20  # an H100 has 50 MiB


def timed(rows: list[Row]) -> list[Row]:
    """The newest row of every lane that was timed, with shares of what this GPU can do.

    share_of_ceiling: of a network, of the peak rate of GEMM in bf16. share_of_floor: of a kernel,
    of the longer of the times for its bytes and its FLOPs; None if a cache may hold its bytes.
    """
    newest = {(r["unit"], r["lane"]): r for r in rows}
    peaks = next((r for r in newest.values() if "bf16_tflops" in r), None)
    found = []
    for r in (r for r in newest.values() if "ms_p50" in r):
        extra: Row = {}
        if "model" in r:
            extra["share_of_ceiling"] = (
                r["tflop"] / r["ms_p50"] * 1e3 / peaks["bf16_tflops"] if peaks else None
            )
        elif "operation" in r:
            rate = peaks and peaks["fp8_tflops" if r["in_fp8"] else "bf16_tflops"]
            cold = r["bytes"] > L2_BYTES
            floor = max(r["flops"] / rate, r["bytes"] / peaks["copy_tbs"]) / 1e9 if rate else None
            extra = {"floor_ms": floor}
            extra["share_of_floor"] = floor / r["ms_p50"] if floor and cold else None
        found.append({**r, **extra})
    return found


def table(rows: list[Row]) -> str:
    """Markdown of one GPU's rows."""
    if not rows:
        return "nothing was measured\n"
    newest = {(r["unit"], r["lane"]): r for r in rows}
    parts = [f"{rows[0]['gpu']}, torch {rows[0]['versions']['torch']}, {rows[0]['date'][:10]}:"]
    if rows[0]["stand_in"]:
        parts = ["A dry run on the CPU: no figure here means anything."]
    for r in newest.values():
        if "bf16_tflops" in r:
            fp8 = "none" if r["fp8_tflops"] is None else f"{r['fp8_tflops']:.0f} TFLOP/s"
            bf16, copy = f"{r['bf16_tflops']:.0f} TFLOP/s", f"{r['copy_tbs']:.2f} TB/s"
            parts.append(f"Peak GEMM: bf16 {bf16}, fp8 {fp8}; copies {copy}.")
        if "summary" in r:
            parts.append(f"Tests on the GPU: {r['summary']}.")
    found = timed(rows)
    lines = [
        f"{r['model']} | {r['batch']}, {r['frames']} | {r['lane']} | {r['ms_p50']:.3f} "
        f"| {_ratio(r, 'eager bf16')} | {_ratio(r, 'triton')} | {_share(r['share_of_ceiling'])} "
        f"| {r['max_rel_error']:.1e}"
        for r in found
        if "model" in r
    ]
    head = "model | B, T | engine | ms | against eager | against triton | of peak GEMM | error"
    parts += [markdown(head, lines)] if lines else []
    lines = [
        f"{r['operation']} | {r['batch']}, {r['frames']}, {r['patches']} | {r['candidate']} "
        f"| {1e3 * r['ms_p50']:.1f} | {_ratio(r, *r['ratios'])} | {_share(r['share_of_floor'])}"
        for r in found
        if "operation" in r
    ]
    head = "kernel | B, T, P | candidate | us | against the first | share of roofline"
    parts += [markdown(head, lines)] if lines else []
    parts += [
        f"{r['unit']}, {r['lane']}: {r.get('failed') or r.get('refused')}"
        for r in newest.values()
        if "failed" in r or "refused" in r
    ]
    return "\n\n".join(parts) + "\n"


def _ratio(r: Row, *names: str) -> str:
    found = next((r["ratios"][n] for n in names if n in r["ratios"]), None)
    return "-" if found is None else f"{found:.2f}x"


def _share(share: float | None) -> str:
    return "-" if share is None else percent(share)
