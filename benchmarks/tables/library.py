"""Tables of measurements of libraries: other stacks, memory, C++."""

from __future__ import annotations

from benchmarks.tables.markdown import NOT_MEASURED, machine_line, markdown, newest

_MODELS = {"motion": "the demo", "stan-b32": "B/32, random weights"}


def canaries_table() -> str:
    """How far other stacks are from engine eager in fp32: the newest run of each."""
    rows = newest("canaries", "model", "stack")
    if not rows:
        return NOT_MEASURED
    lines = [
        f"{_MODELS.get(r['model'], r['model'])} | {r['stack']} | {r['canaries']:.6f} "
        f"| {r['clips']:.6f} | {r['near_stay']:.1%} | {r['near_stay_least']:.0%}"
        for r in rows
    ]
    head = "model | stack | canary clips | videos | near rows that stay | of one video"
    return machine_line(rows[-1]) + markdown(head, lines)


def memory_table() -> str:
    """The memory of embed after 1,000 videos and after ten times as many: the newest run."""
    rows = newest("embed-memory", "workers")
    if not rows:
        return NOT_MEASURED
    lines = [
        f"{when['videos']} | {when['mib']:.0f} | {when['children_mib']:.0f}"
        for r in rows
        for when in (r["early"], r["late"])
    ]
    return machine_line(rows[-1]) + markdown("videos | process, MiB | decoding, MiB", lines)


_MEASURES = {
    "start": "start to first score, 1 clip",
    "clips": "file to embedding, {videos} clips of 64x64, each",
    "film": "file to embedding, a minute of 1080p",
}


def cpp_table() -> str:
    """The C++ library beside the Python package: the newest run of each measure."""
    rows = newest("cpp", "measure")
    timed = [r for name in _MEASURES for r in rows if r["measure"] == name]
    if not timed:
        return NOT_MEASURED
    lines = [
        f"{_MEASURES[r['measure']].format(**r)} | {1e3 * r['cpp_s_p50']:.1f} "
        f"| {1e3 * r['python_s_p50']:.1f} | {r['ratio']:.2f}x "
        f"({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f}) | {r['rounds']}"
        for r in timed
    ]
    head = "| C++, ms | Python, ms | Python / C++ (range) | pairs"
    text = machine_line(*timed) + markdown(head, lines)
    for r in (r for r in rows if r["measure"] == "size"):
        text += (
            f"\n\nThe example for frames in memory, linked with a library that has neither FFmpeg "
            f"nor texts, stripped: {r['bytes'] / 1e3:.0f} kB, beside ONNX Runtime's own library."
        )
    return text
