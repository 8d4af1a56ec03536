"""The HTML page of a benchmark: table, plots, machine, in one file without scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from stan_infer.benchmarking.rows import (
    machine_remarks,
    ratio_in_words,
    remarks,
    shown_cells,
    why_keep_rows,
    write_json_lines,
)
from stan_infer.errors import InputError
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, new_folder
from stan_infer.system.charts import Points, bar_chart, inline_svg, line_chart
from stan_infer.system.html_page import escaped, html_charts, html_page
from stan_infer.system.json_file import checked

Rows = Sequence[Mapping[str, Any]]
_ROWS = "rows.jsonl"
why_keep = earlier_result.folder({"index.html"}, _ROWS, why_keep_rows, "a report")
_STYLE = ".doubt { border-left: 4px solid #D55E00; padding-left: .7rem; font-weight: 600; }\n"
_NOTES = 5  # below a table; more are folded up
_COLUMNS = {
    "engine": "engine",
    "precision": "precision",
    "batch": "B",
    "frames": "T",
    "latency_ms_p50": "p50 ms",
    "ratio": "ratio (95 %)",
    "latency_ms_p20": "p20 ms",
    "latency_ms_p95": "p95 ms",
    "latency_ms_p99": "p99 ms",
    "clips_per_s": "clips/s",
    "gflop_per_s": "GFLOP/s",
    "share_of_ceiling": "of peak GEMM",
    "max_rel_error": "error",
    "peak_host_mib": "peak MiB",
}
_STAGES = {
    "engine": "engine",
    "precision": "precision",
    "frames": "T",
    "decode_ms_p50": "decode ms",
    "embed_ms_p50": "embed ms",
    "score_ms_p50": "score ms",
    "total_ms_p50": "total ms",
}


class _Session(TypedDict):
    engine: str
    precision: str


class _Eval(TypedDict):
    """A record of `eval`, as far as the page needs it; figures: by direction and name."""

    session: _Session
    figures: dict[str, dict[str, Any]]


def write_page(
    folder: Path, title: str, rows: Rows, stages: Rows, evals: Rows, *, sources: Sources = ()
) -> None:
    """Write folder/index.html and folder/rows.jsonl; an existing folder must be an earlier report.

    rows: of bench; stages: of bench_stages; evals: records of `stan-infer eval`; sources: files
    that are read, see atomic.check_folder. Raises InputError if the folder cannot be written,
    MissingError without matplotlib.
    """
    page = render_page(title, rows, stages, evals)
    with new_folder(folder, why_keep, sources=sources) as temporary:
        (temporary / "index.html").write_text(page, encoding="utf-8")
        write_json_lines(temporary / _ROWS, [*rows, *stages])


def render_page(title: str, rows: Rows, stages: Rows, evals: Rows) -> str:
    """Return the page as HTML text."""
    ran = [r for r in rows if not r.get("refused")]
    if not ran:
        raise InputError("nothing was measured: there is no page to write")
    first = ran[0]
    machine = first["machine"]
    # Times that are not an engine's own are in the table only.
    own = [r for r in ran if not r.get("starved")]
    charts = _charts(own, evals) if own else {}
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f"<p>{escaped(machine['cpu'])}, {machine['cores']} cores, {escaped(machine['system'])}, "
        f"{first['threads']} threads, {escaped(first['date'])}. All engines in turn in one "
        f"process; {first['warmup']} uncounted and at least {first['rounds']} counted rounds. "
        f"Ratio: median over the rounds of {escaped(_name(first))} / engine, and its 95 % "
        "interval. Error: largest difference from the baseline, relative to its largest value. "
        "B: clips a call. T: frames of a clip. p50: median latency of a call; 20, 95 and 99 % of "
        "the calls take at most p20, p95 and p99.</p>",
        *_about_machine(ran),
        _table([{**shown_cells(r), "ratio": ratio_in_words(r)} for r in rows], _COLUMNS),
    ]
    if first.get("ceiling_gflop_per_s"):
        parts.append(
            f"<p class=soft>Peak GEMM: {first['ceiling_gflop_per_s']:.0f} GFLOP/s, the best fp32 "
            f"matrix product in the same run ({escaped(first['ceiling_by'])}). Other precisions "
            "and graphs that do less may exceed it.</p>"
        )
    parts.append(html_charts([inline_svg(figure, title) for title, figure in charts.items()]))
    if stages:
        parts += [
            "<h2>From file to scores</h2>",
            f"<p>{stages[0]['videos']} videos, one after the other; medians; "
            f"{stages[0]['scored_texts']} texts scored per video.</p>",
            _table(stages, _STAGES),
        ]
    return html_page(title, parts, _STYLE)


def _about_machine(rows: Rows) -> list[str]:
    """Paragraphs about what else ran; rows that are in no plot are told."""
    told = [f"<p class=soft>{escaped(line)}.</p>" for line in machine_remarks(rows)]
    if any(r.get("starved") for r in rows):
        words = told.pop().replace("class=soft", "class=doubt")
        told.append(words.replace("</p>", " They are left out of the plots.</p>"))
    return told


def _charts(rows: Rows, evals: Rows) -> dict[str, Any]:
    """Figures of matplotlib by their titles."""
    batches = sorted({r["batch"] for r in rows})
    frames = sorted({r["frames"] for r in rows})
    shape = {"batch": batches[0], "frames": frames[0]}
    at = [r for r in rows if all(r[k] == v for k, v in shape.items())]
    where = f"B = {batches[0]}, T = {frames[0]}"
    found: dict[str, Any] = {}

    def add(draw: Callable[..., Any], values: Any, title: str, *words: str, **more: Any) -> None:
        if values:  # one colour per name
            found[title] = draw(values, title, *words, names=[_name(r) for r in at], **more)

    if len(batches) > 1:
        latency = _series(rows, "batch", "latency_ms_p50", "frames", frames[0])
        title = f"Latency against batch, T = {frames[0]}"
        add(line_chart, latency, title, "batch B, clips a call", "median latency, ms")
    else:
        latencies = {_name(r): r["latency_ms_p50"] for r in at}
        add(bar_chart, latencies, f"Latency, {where}", "median latency, ms")
    if len(frames) > 1:
        speed = _series(rows, "frames", "clips_per_s", "batch", batches[0])
        title = f"Throughput against frames, B = {batches[0]}"
        add(line_chart, speed, title, "frames T of a clip", "clips per second")
    ratios = {_name(r): r["speedup"] for r in at if not r.get("doubts")}
    if len(ratios) > 1:
        unit = "times the baseline's speed (dashed: the baseline)"
        add(bar_chart, ratios, f"Speed, {where}", unit, line=1)
    shares = {_name(r): 100 * r["share_of_ceiling"] for r in at if r.get("share_of_ceiling")}
    unit = "percent (dashed: the fastest fp32 matrix product)"
    add(bar_chart, shares, f"Share of peak GEMM, {where}", unit, line=100)
    errors = {
        _name(r): [(r["latency_ms_p50"], r["max_rel_error"])] for r in at if r["max_rel_error"] > 0
    }
    words = ("median latency, ms", "relative error (log scale)")
    add(line_chart, errors, f"Error against latency, {where}", *words, log_y=True, lines=False)
    label, points = _accuracy(rows, evals)
    title = f"{label} against latency, B = {batches[0]}"
    add(line_chart, points, title, words[0], f"{label}, percent", lines=False)
    return found


def _accuracy(rows: Rows, evals: Rows) -> tuple[str, dict[str, Points]]:
    """A figure's name, and latency at the smallest B and that figure of engines with both."""
    batch = min(r["batch"] for r in rows)
    latency = {
        (r["engine"], r["precision"]): r["latency_ms_p50"] for r in rows if r["batch"] == batch
    }
    points: dict[str, Points] = {}
    label = ""
    for record in evals:
        given = checked(dict(record), _Eval, "a record of eval")
        session, figures = given["session"], next(iter(given["figures"].values()), {})
        key = (session["engine"], session["precision"])
        label = next((n for n in ("R@1", "top-1") if n in figures), label)
        if key in latency and label in figures:
            value = checked(figures[label], float, f"{label} of a record of eval")
            points[" ".join(key)] = [(latency[key], value)]
    return label, points


def _series(rows: Rows, x: str, y: str, fixed: str, value: Any) -> dict[str, Points]:
    found: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        if r[fixed] == value:
            found.setdefault(_name(r), []).append((r[x], r[y]))
    return {name: sorted(points) for name, points in found.items()}


def _table(rows: Rows, columns: Mapping[str, str]) -> str:
    shown = {k: v for k, v in columns.items() if any(r.get(k) is not None for r in rows)}
    head = "".join(f"<th>{escaped(v)}</th>" for v in shown.values())
    lines = [
        f"<tr{' class=soft' * bool(r.get('doubts'))}>"
        + "".join(f"<td>{_cell(k, r.get(k))}</td>" for k in shown)
        + "</tr>"
        for r in rows
    ]
    notes = [f"<li>{escaped(line)}</li>" for r in rows for line in remarks(r)]
    below = f"<ul class=soft>{''.join(notes)}</ul>" if notes else ""
    if len(notes) > _NOTES:
        below = f"<details><summary>{len(notes)} remarks on rows</summary>{below}</details>"
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>{below}"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return escaped(value)
    if name == "share_of_ceiling":
        return f"{100 * value:.0f} %"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:.4g}"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['engine']} {row['precision']}"
