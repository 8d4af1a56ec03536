"""python -m benchmarks.table [--write | --check]: the documents' tables, from recorded runs.

The files hold markers `<!-- table:NAME -->` ... `<!-- /table -->`; what stands between them is
generated from benchmarks/results/ and examples/motion/results.json, never typed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.eight_bit_tables import int8_speed_table, outliers_table, sensitivity_table
from benchmarks.gpu_tables import aot_table, gpu_table, packed_table, plans_table, targets_table
from benchmarks.record import ROOT, read_rows

_LANES = {
    ("eager", "reference"): "eager",
    ("compile", "reference"): "torch.compile",
    ("eager", "fused"): "eager, fused",
    ("ort", "reference"): "ORT",
    ("ort", "fused"): "ORT, fused",
    ("openvino", "reference"): "OpenVINO",
    ("openvino", "fused"): "OpenVINO, fused",
}


def engines_table(threads: int | None = None) -> str:
    """CPU engines on the reference and the fused graph: newest run of each model and thread count.

    Each cell: median, median of paired ratios to eager, share of the run's best matrix product.
    """
    runs: dict[tuple[str, str, int], dict[tuple[str, str], dict[str, Any]]] = {}
    for r in read_rows("engines"):
        if threads not in (None, r["threads"]):
            continue
        run = runs.setdefault((r["machine"]["cpu"], r["model"], r["threads"]), {})
        run[r["engine"], r["graph"]] = r
    if not runs:
        return "not measured"
    lines = []
    for machine in sorted({k[0] for k in runs}):
        own = {k: run for k, run in runs.items() if k[0] == machine}
        last = next(iter(list(own.values())[-1].values()))
        lines += [_machine_line(last), ""]
        lines += ["| B = 1, threads | " + " | ".join(_LANES.values()) + " | ceiling, GFLOP/s |"]
        lines += ["|---" * (len(_LANES) + 2) + "|"]
        for (_, model, threads), run in own.items():
            cells = [_engine_cell(run.get(lane)) for lane in _LANES]
            first = next(iter(run.values()))
            ceiling = f"{first['ceiling_gflop_per_s']:.0f} ({first['ceiling_by'].split()[0]})"
            name = f"{model}, T = {first['frames']}, {threads}"
            lines.append(f"| {name} | {' | '.join(cells)} | {ceiling} |")
        errors = [r["max_rel_error"] for run in own.values() for r in run.values()]
        lines += ["", f"Largest difference from eager: {max(errors):.0e}."]
    return "\n".join(lines)


def _engine_cell(r: dict[str, Any] | None) -> str:
    if r is None:
        return "not measured"
    ms, share = r["latency_ms_p50"], 100 * r["share_of_ceiling"]
    return f"{ms:.0f} ms, {r['speedup']:.2f}x, {share:.0f} %"


def graphs_table() -> str:
    """ONNX Runtime on the reference and the fused graph alone: measured and counted ratio."""
    runs: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for r in read_rows("graphs"):
        runs.setdefault((r["machine"]["cpu"], r["model"], r["threads"]), {})[r["graph"]] = r
    if not runs:
        return "not measured"
    lines = ["| model, threads | faster than the reference graph | its products say | pairs |"]
    lines += ["|---|---|---|---|"]
    for (_, model, threads), run in runs.items():
        fused, counted = run["fused"], run["reference"]["graph_gflop"] / run["fused"]["graph_gflop"]
        lines.append(
            f"| {model}, {threads} | {fused['speedup']:.3f}x | {counted:.3f}x "
            f"| {fused.get('rounds', fused.get('repeats'))} |"
        )
    return "\n".join(lines)


def repeat_table() -> str:
    """Ratios to eager of two runs of the same `bench`, newest of each engine."""
    newest = {(r["model"], r["engine"], r["precision"]): r for r in read_rows("repeat")}
    if not newest:
        return "not measured"
    lines = ["| model, engine | first run | second run | apart |", "|---|---|---|---|"]
    for (model, engine, _), r in newest.items():
        one, two = r["speedups"]
        lines.append(f"| {model}, {engine} | {one:.3f}x | {two:.3f}x | {100 * r['apart']:.1f} % |")
    return "\n".join(lines)


def accuracy_table(reduced: bool = False) -> str:
    """The demo through `stan-infer eval`: newest run of each engine and precision.

    reduced: only what is below fp32, and the baseline.
    """
    newest = {(r["engine"], r["precision"]): r for r in read_rows("accuracy")}
    if reduced:
        newest = {k: r for k, r in newest.items() if k[0] == "eager" or k[1] != "fp32"}
    if not newest:
        return "not measured"
    lines = ["| engine, precision | motion, of 10 | lost (95 %) | agrees | caption, of 400 |"]
    lines += ["|---|---|---|---|---|"]
    for (engine, precision), r in newest.items():
        low, high = r["motion_interval"]
        lost = "{:.2f} ({:.2f} to {:.2f})".format(r["motion_loss"], *r["motion_loss_interval"])
        motion = f"{r['motion_top1']:.1f} % ({low:.1f} to {high:.1f})"
        lines.append(
            f"| {engine}, {precision} | {motion} | {lost} "
            f"| {r['motion_agreement']:.1f} % | {r['caption_top1']:.1f} % |"
        )
    return "\n".join(lines)


def load_table() -> str:
    """Loading time and memory, and start-up time, newest run of each."""
    newest = {r["model"]: r for r in read_rows("load")}
    if not newest:
        return "not measured"
    lines = [_machine_line(next(iter(newest.values()))), ""]
    lines += ["| checkpoint | file MiB | load s (worst) | peak memory / file size (worst) |"]
    lines += ["|---|---|---|---|"]
    for name, r in newest.items():
        lines.append(
            f"| {name} | {r['file_mib']:.0f} | {r['load_s']:.2f} ({r['load_s_max']:.2f}) "
            f"| {r['peak_over_file']:.2f} ({r['peak_over_file_max']:.2f}) |"
        )
    startup = read_rows("startup")
    if startup:
        lines += ["", f"`stan-infer --help`: {startup[-1]['help_s_p50']:.2f} s (median of 7)."]
    cold = read_rows("cold")
    if cold:
        lines[-1] += (
            f" First `run` of the exported demo, from nothing, without torch: "
            f"{cold[-1]['cold_run_s_p50']:.2f} s (median of {cold[-1]['repeats']}), in an "
            f"environment of {cold[-1]['site_packages_mb']:.0f} MB."
        )
    return "\n".join(lines)


def motion_table() -> str:
    """Held-out accuracy of the demo checkpoint."""
    path = ROOT / "examples" / "motion" / "results.json"
    if not path.is_file():
        return "not measured"
    from examples.motion.evaluate import table

    r = json.loads(path.read_text())
    made = f"{r['clips']} clips of seed {r['seed']}, {r['date']}, {r['cpu']}, torch {r['torch']}:"
    return f"{made}\n\n{table(r)}"


def videos_table() -> str:
    """Scores of three sample clips against three texts, as benchmarks.motion recorded them."""
    rows = read_rows("motion")
    if not rows:
        return "not measured"
    texts = rows[-1]["texts"]
    lines = ["| | " + " | ".join(f'"{t}"' for t in texts) + " |", "|---" * (len(texts) + 1) + "|"]
    for video, scores in rows[-1]["scores"].items():
        best = max(scores)
        cells = [f"**{s:.2f}**" if s == best else f"{s:.2f}" for s in scores]
        lines.append(f"| `{video}` | {' | '.join(cells)} |")
    return "\n".join(lines)


FILES = ("README.md", "BENCHMARKS.md")
TABLES: dict[str, Callable[[], str]] = {
    "graphs": graphs_table,
    "accuracy": accuracy_table,
    "accuracy_reduced": partial(accuracy_table, reduced=True),
    "repeat": repeat_table,
    "outliers": outliers_table,
    "int8_speed": int8_speed_table,
    "sensitivity": sensitivity_table,
    "engines": engines_table,
    "engines_two": partial(engines_table, threads=2),
    "load": load_table,
    "motion": motion_table,
    "videos": videos_table,
    "packed": packed_table,
    "plans": plans_table,
    "gpu": gpu_table,
    "aot": aot_table,
    "targets": targets_table,
}


def render(text: str) -> str:
    """Return `text` with every marked table generated anew."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- table:{match[1]} -->\n{TABLES[match[1]]()}\n<!-- /table -->"

    return re.sub(r"<!-- table:(\w+) -->.*?<!-- /table -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Write the tables, or fail if they are not what the recorded runs say."""
    parser = argparse.ArgumentParser(description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", action="store_true")
    group.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for name in FILES:
        now = (ROOT / name).read_text()
        wanted = render(now)
        if args.write:
            (ROOT / name).write_text(wanted)
        elif now != wanted:
            sys.exit(f"{name} does not match the recorded runs: python -m benchmarks.table --write")


def _machine_line(row: dict[str, Any]) -> str:
    m, v = row["machine"], row["versions"]
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['system']}, Python {m['python']}, "
        f"torch {v['torch']}, ONNX Runtime {v['onnxruntime']}, {row['date']}:"
    )


if __name__ == "__main__":
    main()
