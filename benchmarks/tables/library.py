"""Tables of measurements of libraries: other stacks, memory, rates, searches, stores, C++."""

from __future__ import annotations

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


def embed_rate_table() -> str:
    """The rate of embed against its parts alone and the loop by hand; its start apart."""
    keys = ("model", "threads", "workers")
    tables = [_embed_rate_of(last_of(rows, *keys)) for rows in by_machine("embed-rate")]
    return "\n\n".join(tables) or NOT_MEASURED


def _embed_rate_of(rows: list[Row]) -> str:
    """The same, of one machine."""

    def rate(row: Row, name: str) -> str:
        return f"{row['clips'] / row[f'{name}_s_p50']:#.3g}".rstrip(".")

    lines = [
        f"{_MODELS.get(r['model'], r['model'])}, {_count(r['threads'], 'thread')} "
        f"| {r['chosen'] if r['workers'] == 'auto' else r['workers']}"
        f"{' (chosen)' if r['workers'] == 'auto' else ''} | {rate(r, 'embed')} "
        f"| {rate(r, 'decoding')} | {rate(r, 'model')} "
        f"| {rate(r, 'model_free')} | {rate(r, 'loop')} "
        f"| {percent(r['share_of_slower'])} | {percent(r['share_of_cores'])} "
        f"| {r['loop_ratio']:.2f}x | {r['start_s']:.1f}, {r['open_s']:.1f} s | {r['clips']}"
        for r in rows
    ]
    head = (
        "model | workers | embed, clips/s | decoding | model | without decoders | loop "
        "| of the slower | of the cores | to the loop | start, of it opening | clips"
    )
    return machine_line(*rows) + markdown(head, lines)


def _count(number: int | str, name: str) -> str:
    return f"{name}s not given" if number == "auto" else f"{number} {name}{'s' * (number != 1)}"


def search_table() -> str:
    """Searches of a library that one program has opened, of every machine."""
    tables = [_searches_of(last_of(rows, "vectors", "engine")) for rows in by_machine("search")]
    return "\n\n".join(tables) or NOT_MEASURED


def _searches_of(rows: list[Row]) -> str:
    def times(found: dict[str, float] | None) -> str:
        return (
            NOT_MEASURED if found is None else f"{found['ms_p50']:.0f} ms ({found['ms_p95']:.0f})"
        )

    lines = [
        f"{r.get('engine', 'eager, all 32 bits')} | {r['vectors']:,} | {times(r)} "
        f"| {times(r['text'])} | {times(r['path'])} | {times(r.get('length'))} "
        f"| {r['recall_at_10']:.3f} | {r['open_s']:.2f} s | {r['private_mib']:.0f} "
        + (f"| {r['codes_s']:.1f} s, {r['codes_mib']:.0f} MiB" if "codes_s" in r else "| no")
        for r in rows
    ]
    head = (
        "engine | rows | search, p50 (p95) | of it the text | with --path | with --longer "
        "| recall@10 | opened in | MiB of its own | 8 bits made in, size"
    )
    return machine_line(*rows) + markdown(head, lines)


def serve_table() -> str:
    """Searches that the server answers, by the number of clients that ask at a time."""
    rows = newest("serve", "vectors")
    if not rows:
        return NOT_MEASURED
    lines = [
        f"{r['vectors']:,} | {run['clients']} | {run['per_s']:.1f} | {run['ms_p50']:.0f} ms "
        f"| {run['ms_p95']:.0f} ms | {run['busy']} of {run['answers'] + run['busy']} "
        f"| {r['start_s']:.1f} s | {r['private_mib']:.0f}"
        for r in rows
        for run in r["runs"]
    ]
    head = (
        "rows | clients | searches a second | p50 | p95 | told to come again | started in "
        "| MiB of its own"
    )
    return machine_line(*rows) + markdown(head, lines)


def stores_table() -> str:
    """Where vectors can be kept: appending, size, what is left after a kill."""
    rows = newest("stores", "name", "vectors", what="store")
    if not rows:
        return NOT_MEASURED
    lines = [
        f"{r['name']} | {r['vectors']:,} | {r['append_s']:.0f} s | {r['disk_mib']:.0f} MiB "
        f"| {r['files']} | {max(0, *(k['lost'] for k in r['after_kill']))} "
        f"| {max(k['part'] for k in r['after_kill'])} | {r['install_mib']:.0f} MiB"
        for r in rows
    ]
    head = (
        "store | vectors | appended in | on the disk | files | lost of what was committed "
        "| rows of a part of a commit | packages"
    )
    return machine_line(*rows) + markdown(head, lines)


def indexes_table() -> str:
    """How vectors can be searched: exactly, and by indexes of other libraries."""
    rows = newest("stores", "name", "setting", "vectors", what="search")
    if not rows:
        return NOT_MEASURED
    lines = [
        f"{r['name']}{', ' * bool(r['setting'])}{r['setting']} | {r['vectors']:,} "
        f"| {r['build_s']:.0f} s | {r['index_mib']:.0f} MiB | {r['build_peak_mib']:.0f} MiB "
        f"| {r['query_ms_p50']:.1f} ms | {r['query_ms_p95']:.1f} ms | {r['recall_at_10']:.3f}"
        for r in rows
    ]
    head = (
        "search | vectors | built in | index on the disk | memory to build | p50 | p95 | recall@10"
    )
    return machine_line(*rows) + markdown(head, lines)


_MEASURES = {
    "start": "start to first score, 1 clip",
    "clips": "file to embedding, {videos} clips of 64x64, each",
    "film": "file to embedding, a minute of 1080p",
}


def cpp_table() -> str:
    """The C++ library beside the Python package: the newest run of each measure and threads."""
    rows = newest("cpp", "measure", "threads")
    timed = [r for name in _MEASURES for r in rows if r["measure"] == name]
    if not timed:
        return NOT_MEASURED
    lines = [
        f"{_MEASURES[r['measure']].format(**r)} | {r.get('threads', 'default')} "
        f"| {1e3 * r['cpp_s_p50']:.1f} "
        f"| {1e3 * r['python_s_p50']:.1f} | {r['ratio']:.2f}x "
        f"({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f}) | {r['rounds']}"
        for r in timed
    ]
    head = "| threads | C++, ms | Python, ms | Python / C++ (range) | pairs"
    text = machine_line(*timed) + markdown(head, lines)
    for r in (r for r in rows if r["measure"] == "size"):
        text += (
            f"\n\nThe example for frames in memory, linked with a library that has neither FFmpeg "
            f"nor texts, stripped: {r['bytes'] / 1e3:.0f} kB, beside ONNX Runtime's own library."
        )
    return text
