"""Tables of measurements of libraries: other stacks, memory."""

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
