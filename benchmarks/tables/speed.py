"""Tables of measurements on a CPU: speed, loading, building plans."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.record import read_rows
from benchmarks.tables.markdown import (
    NOT_MEASURED,
    Row,
    by_machine,
    last_of,
    machine_line,
    markdown,
    newest,
    percent,
)
from stan_infer.benchmarking.rows import ratio_in_words

_CANDIDATES = {
    ("eager", "reference"): "eager",
    ("compile", "reference"): "torch.compile",
    ("eager", "fused"): "eager, fused",
    ("ort", "reference"): "ORT",
    ("ort", "fused"): "ORT, fused",
    ("openvino", "reference"): "OpenVINO",
    ("openvino", "fused"): "OpenVINO, fused",
}
_INT8 = {
    (engine, precision): f"{engine}, {precision}"
    for engine in ("eager", "ort", "openvino")
    for precision in ("fp32", "int8")
    if (engine, precision) != ("eager", "int8")
}
# Model, frames and threads of a run, and its row of each candidate.
Runs = dict[tuple[str, int, int], dict[tuple[str, str], Row]]


def engines_table(threads: int | None = None) -> str:
    """CPU engines on the reference and the fused graph: newest run of each model and thread count.

    Each cell: median, median of paired ratios to eager, share of the run's peak GEMM. With
    `threads` only the runs of so many, without a column for them, on the machine measured last.
    """
    machines = by_machine("engines") if threads is None else by_machine("engines", threads=threads)
    parts = []
    for rows in machines if threads is None else machines[:1]:
        runs = _runs(rows, "graph")
        error = max(r["max_rel_error"] for run in runs.values() for r in run.values())
        parts.append(machine_line(rows[-1]) + _by_engine(runs, _CANDIDATES, _engine_cell, threads))
        parts[-1] += f"\n\nLargest difference from eager: {error:.0e}."
    return "\n\n".join(parts) or NOT_MEASURED


def _runs(rows: list[Row], variant: str) -> Runs:
    """The newest run of each model, frames and threads, by engine and `variant`."""
    runs: Runs = {}
    for r in rows:
        run = runs.setdefault((r["model"], r["frames"], r["threads"]), {})
        run[r["engine"], r[variant]] = r
    return runs


def _by_engine(
    runs: Runs,
    candidates: dict[tuple[str, str], str],
    cell: Callable[[Row | None], str],
    threads: int | None = None,
) -> str:
    """A row for each number of threads and candidate, a column for each model."""
    models = list(dict.fromkeys((model, frames) for model, frames, _ in runs))
    lines = []
    for count in dict.fromkeys(key[2] for key in runs):
        own = [runs.get((*model, count), {}) for model in models]
        found = {name: [cell(run.get(key)) for run in own] for key, name in candidates.items()}
        if any("ceiling_by" in r for run in own for r in run.values()):
            found["peak GEMM"] = [_peak(run) for run in own]
        column = [] if threads else [str(count)]
        lines += [" | ".join([name, *column, *cells]) for name, cells in found.items()]
    first = [f"B = 1, {threads} threads"] if threads else ["B = 1", "threads"]
    return markdown(" | ".join([*first, *(f"{m}, T = {t}" for m, t in models)]), lines)


def _peak(run: dict[tuple[str, str], Row]) -> str:
    if not run:
        return NOT_MEASURED
    r = next(iter(run.values()))
    return f"{r['ceiling_gflop_per_s']:.0f} GFLOP/s ({r['ceiling_by'].split()[0]})"


def _engine_cell(r: Row | None) -> str:
    if r is None:
        return NOT_MEASURED
    ms, share = r["latency_ms_p50"], percent(r["share_of_ceiling"])
    return f"{ms:.0f} ms, {_ratio(r)}, {share}"


def _ratio(r: Row, digits: int = 2) -> str:
    """The ratio, or what is known of one that cannot be believed."""
    return ratio_in_words(r) if r.get("doubts") else f"{r['speedup']:.{digits}f}x"


def graphs_table() -> str:
    """ONNX Runtime on the reference and the fused graph alone: measured and counted ratio."""
    parts = []
    for rows in by_machine("graphs"):
        runs: dict[tuple[str, int], dict[str, Row]] = {}
        for r in rows:
            runs.setdefault((r["model"], r["threads"]), {})[r["graph"]] = r
        lines = []
        for (model, threads), run in runs.items():
            fused = run["fused"]
            counted = run["reference"]["graph_gflop"] / fused["graph_gflop"]
            pairs = fused.get("rounds", fused.get("repeats"))
            lines.append(f"{model} | {threads} | {_ratio(fused, 3)} | {counted:.3f}x | {pairs}")
        head = "model | threads | faster than the reference graph | ratio of their FLOPs | pairs"
        parts.append(machine_line(rows[-1]) + markdown(head, lines))
    return "\n\n".join(parts) or NOT_MEASURED


def repeat_table() -> str:
    """Ratios to eager of two runs of the same `bench`, newest of each engine and company.

    Without rows of eager, which is 1 to itself in every run.
    """
    parts = []
    for rows in by_machine("repeat"):
        lines = []
        found = last_of(rows, "model", "engine", "beside")
        found = [r for r in found if r["engine"] != "eager"]
        for r in sorted(found, key=lambda r: r.get("beside", 0)):
            one, two = r.get("ratios") or (f"{x:.3f}x" for x in r["speedups"])
            beside = r.get("beside", 0) or "nothing"
            name = f"{r['model'].removesuffix(' (random weights)')}, {r['engine']}"
            lines.append(f"{name} | {beside} | {one} | {two} | {100 * r['apart']:.1f} %")
        head = "model, engine | beside | first run | second run | medians apart"
        parts.append(machine_line(rows[-1]) + markdown(head, lines))
    return "\n\n".join(parts) or NOT_MEASURED


def int8_table() -> str:
    """Engines in fp32 and INT8 against eager fp32: the newest run of each."""
    parts = []
    for rows in by_machine("int8-speed"):
        sets = rows[-1]["machine"]["instruction_sets"]
        vnni = "" if any("vnni" in s for s in sets) else "No VNNI (products of 8-bit integers):\n\n"
        runs = dict(sorted(_runs(rows, "precision").items(), key=lambda i: (len(i[0][0]), i[0])))
        parts.append(machine_line(rows[-1]) + vnni + _by_engine(runs, _INT8, _int8_cell))
    return "\n\n".join(parts) or NOT_MEASURED


def _int8_cell(r: Row | None) -> str:
    if r is None or "latency_ms_p50" not in r:
        return NOT_MEASURED
    return f"{r['latency_ms_p50']:.0f} ms, {_ratio(r)}"


def load_table() -> str:
    """Loading time and memory, and start-up time, newest run of each."""
    rows = newest("load", "model")
    if not rows:
        return NOT_MEASURED
    lines = [
        f"{r['model']} | {r['file_mib']:.0f} | {r['load_s']:.2f} ({r['load_s_max']:.2f}) "
        f"| {r['peak_over_file']:.2f} ({r['peak_over_file_max']:.2f})"
        for r in rows
    ]
    head = "checkpoint | file MiB | load s (worst) | peak memory / file size (worst)"
    text = machine_line(rows[0]) + markdown(head, lines)
    startup, cold = read_rows("startup"), read_rows("cold")
    if startup:
        text += f"\n\n`stan-infer --help`: {startup[-1]['help_s_p50']:.2f} s (median of 7)."
    if cold:
        text += (
            f" First `run` of the exported demo, from nothing, without torch: "
            f"{cold[-1]['cold_run_s_p50']:.2f} s (median of {cold[-1]['repeats']}), in an "
            f"environment of {cold[-1]['site_packages_mb']:.0f} MB."
        )
    return text


def shapes_table() -> str:
    """Memory of each engine after few and after many shapes: the newest run of each."""
    rows = newest("shapes", "engine")
    if not rows:
        return NOT_MEASURED
    lines = [
        f"{r['engine']} | {r['mib_first']:.0f} | {r['mib_early']:.0f} | {r['mib_last']:.0f} "
        f"| {r['growth']:.2f}x"
        for r in rows
    ]
    (batch, frames), last = rows[-1]["largest"], rows[-1]
    head = (
        f"engine | MiB after the largest | after {last['early']} | after {last['shapes']} | growth"
    )
    where = machine_line(last).replace(":\n\n", f", OpenVINO {last['versions']['openvino']}:\n\n")
    text = f"\n\nShapes (B, T) up to ({batch}, {frames}) in random order, the largest first."
    return where + markdown(head, lines) + text


def stream_table() -> str:
    """Windows that slide against the whole network on each: the newest run of each."""
    rows = newest("stream", "model", "threads", "at_once", "stride")
    if not rows:
        return NOT_MEASURED
    lines = [
        f"{r['model']} | {r['threads']} | {r['at_once']} | {r['stride']} "
        f"| {r['windows_per_s']:.1f} | {r['whole_windows_per_s']:.1f} "
        f"| {r['ratio']:.2f}x ({r['ratio_low']:.2f} to {r['ratio_high']:.2f}) "
        f"| {r['ratio_by_flops']:.2f}x"
        for r in rows
    ]
    head = (
        "model | threads | frames at once | stride | windows per s | whole network | ratio (range) "
        "| by FLOPs"
    )
    return machine_line(rows[-1]) + markdown(head, lines)


def hour_table() -> str:
    """Windows on a grid of a long video and the loop of decord and ONNX Runtime: the newest run."""
    rows = newest("hour", "model")
    if not rows:
        return NOT_MEASURED
    lines = [
        f"{r['model']} | {r['minutes']} min, {r['windows']} windows | {r['embed_s']:.0f} s "
        f"| {r['peaks_mib'][1]:.0f} | {r['peak_mib']:.0f} | {r['loop_minutes']:g} min, "
        f"{r['loop_windows']} windows | {r['loop_s']:.0f} s | {r['loop_peak_mib']:.0f} "
        f"| {r['ratio']:.1f}x"
        for r in rows
    ]
    packages = ", ".join(f"{name} {v}" for name, v in rows[-1]["packages"].items())
    where = machine_line(rows[-1]).replace(":\n\n", f", {packages}:\n\n")
    head = (
        "model | embed | time | MiB in the second tenth | at most | the loop | time | MiB at most "
        "| ratio per window"
    )
    return where + markdown(head, lines)


def embed_table() -> str:
    """`stan-infer embed` and a loop of decord and ONNX Runtime: the newest run of each."""
    rows = newest("embed", "clips")
    if not rows:
        return NOT_MEASURED
    names = {"short": "{} clips of 16 frames, 64x64", "long": "{} films of a minute, 1080p"}
    lines = [
        f"{names[r['clips']].format(r['videos'])} | {r['embed_s_p50']:.1f} | {r['loop_s_p50']:.1f} "
        f"| {r['speedup']:.2f}x ({r['speedup_range'][0]:.2f} to {r['speedup_range'][1]:.2f}) "
        f"| {r['rounds']}"
        for r in rows
    ]
    packages = ", ".join(f"{name} {v}" for name, v in rows[-1]["packages"].items())
    where = machine_line(rows[-1]).replace(":\n\n", f", {packages}:\n\n")
    return where + markdown("videos | embed, s | the loop, s | ratio (range) | pairs", lines)


def plans_table() -> str:
    """Time and memory of building plans: the newest run of each model, graph and precision."""
    rows = newest("plans", "model", "role", "precision")
    if not rows:
        return NOT_MEASURED
    machine, version, date = (rows[-1][k] for k in ("machine", "tensorrt_rtx", "date"))
    lines = [
        f"{r['model']}, {r['role']} | {r['precision']} | {r['profiles']} | {r['onnx_mib']:.1f} "
        f"| {r['plan_mib']:.1f} | {r['build_s']:.1f} | {r['build_peak_mib']:.0f}"
        for r in rows
    ]
    head = "model, graph | precision | profiles | ONNX MiB | plan MiB | build s | peak MiB"
    where = f"{machine['cpu']}, {machine['cores']} cores, TensorRT-RTX {version}, {date[:10]}:"
    return f"{where}\n\n{markdown(head, lines)}"
