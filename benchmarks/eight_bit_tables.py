"""Tables of what 8 bits cost and gain, from recorded runs."""

from __future__ import annotations

from typing import Any

from benchmarks.record import read_rows


def outliers_table() -> str:
    """Models with planted outlier channels, smoothed and not: newest run of each."""
    newest = {(r["model"], r["smooth"]): r for r in read_rows("outliers")}
    if not newest:
        return "not measured"
    lines = [
        "| model, INT8 | smallest cosine | file of fp32 | linears in 8 bits |",
        "|---|---|---|---|",
    ]
    for (model, smooth), r in sorted(newest.items(), key=lambda item: (item[0][0], not item[0][1])):
        form = "smoothed" if smooth else "not smoothed"
        count = f"{r['linears'] - len(r['kept'])} of {r['linears']}"
        lines.append(f"| {model}, {form} | {r['cosine']:.5f} | {r['file_ratio']:.2f}x | {count} |")
    return "\n".join(lines)


def int8_speed_table() -> str:
    """Engines in fp32 and INT8 against eager fp32, in turn: newest run of each."""
    runs: dict[tuple[str, int], dict[tuple[str, str], dict[str, Any]]] = {}
    for r in read_rows("int8-speed"):
        runs.setdefault((r["model"], r["threads"]), {})[r["engine"], r["precision"]] = r
    if not runs:
        return "not measured"
    any_row = next(iter(next(iter(runs.values())).values()))
    sets = [s for s in any_row["machine"]["instruction_sets"] if s not in ("avx", "f16c", "fma")]
    has_vnni = any("vnni" in s for s in sets)
    cpu = f"{any_row['machine']['cpu']}: {', '.join(sets)}"
    columns = [("eager", "fp32"), ("ort", "fp32"), ("ort", "int8"), ("openvino", "fp32")]
    columns += [("openvino", "int8")]
    head = " | ".join(f"{e}, {p}" for e, p in columns)
    lines = [cpu + ("" if has_vnni else "; no VNNI, whose gain is not measured") + ":", ""]
    lines += [f"| B = 1, T, threads | {head} |", "|---" * (len(columns) + 1) + "|"]
    for (model, threads), run in sorted(runs.items(), key=lambda i: (len(i[0][0]), i[0])):
        cells = [_cell(run.get(c)) for c in columns]
        frames = next(iter(run.values()))["frames"]
        lines.append(f"| {model}, {frames}, {threads} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sensitivity_table() -> str:
    """The linears of the demo that cost most in INT8, each alone: the newest run."""
    rows = [r for r in read_rows("calibration") if r["precision"] == "int8"]
    if not rows:
        return "not measured"
    worst = sorted(rows[-1]["sensitivity"], key=lambda r: -r["error"])
    lines = ["| linear alone in INT8 | relative error of the embedding |", "|---|---|"]
    lines += [f"| `{r['linear']}` | {r['error']:.4f} |" for r in worst[:5]]
    middle = worst[len(worst) // 2]["error"]
    lines.append(f"| median of {len(worst)} | {middle:.4f} |")
    return "\n".join(lines)


def _cell(r: dict[str, Any] | None) -> str:
    if r is None or "latency_ms_p50" not in r:
        return "not measured"
    return f"{r['latency_ms_p50']:.0f} ms, {r['speedup']:.2f}x"
