"""Tables about GPUs: figures that were counted without one or measured on one."""

from __future__ import annotations

from benchmarks.gpu.packed import ways
from benchmarks.gpu.rows import timed
from benchmarks.record import read_rows
from benchmarks.tables.markdown import NOT_MEASURED, Row, markdown


def packed_table() -> str:
    """Ways to compute one temporal layer of B/16 on eight clips of 12 frames."""
    lines = [
        f"{row['way']} | {row['mb']:.0f} | {100 * row['useful']:.1f} %"
        for row in ways(8, 12, 196, 768)
    ]
    return markdown("B/16, 8 clips of 12 frames, one layer, bf16 | MB moved | scores used", lines)


def launches_table() -> str:
    """Floors and times of the network that arithmetic predicts, and measured times."""
    measured = [r for r in _measured() if r["lane"] == "triton"]
    lines = []
    for r in read_rows("launches"):
        keys = ("model", "batch", "frames", "sm")
        own = [m for m in measured if all(m[k] == r[k] for k in keys)]
        cell = "; ".join(f"{m['gpu']}: {m['ms_p50']:.2f} ms" for m in own) or NOT_MEASURED
        times = " | ".join(
            f"{r[k]:.2f} ms" for k in ("memory_ms", "tensor_ms", "issue_ms", "predicted_ms")
        )
        name = f"{r['model']}, B = {r['batch']}, {r['gpu']}"
        lines.append(
            f"{name} | {r['launches']} | {r['gflop']:.0f} | {r['mb']:.0f} | {times} | {cell}"
        )
    head = "T = 12, bf16 | launches | GFLOP | MB moved | memory | tensor cores | issue"
    return markdown(f"{head} | predicted (arithmetic) | measured", lines)


def _measured() -> list[Row]:
    """What was timed on GPUs, each with shares of its own GPU's rates; a dry run is of another
    kind of rows' file and never here."""
    found, rows = [], [r for r in read_rows("gpu") if not r["stand_in"]]
    for gpu in dict.fromkeys(r["gpu"] for r in rows):
        found += timed([r for r in rows if r["gpu"] == gpu])
    return found


B16 = {"model": "stan-b16", "batch": 8, "frames": 12}
L14 = {"model": "stan-l14", "batch": 8, "frames": 12}
B32 = {"model": "stan-b32", "batch": 1, "frames": 12}
PACKED = {"operation": "temporal_attention", "batch": 8, "patches": 196}
PACKED |= {"candidate": "ours"}
PACKED_12, PACKED_64 = {**PACKED, "frames": 12}, {**PACKED, "frames": 64}
BLOCK = {"operation": "temporal block", "batch": 8, "frames": 12, "patches": 196}
BLOCK |= {"candidate": "ours"}
TRITON = {"lane": "triton"}
MAX, SDPA = "compile max-autotune", "SDPA with its copies"

# Targets on an H100: text; the limit (at least, or if negative at most); keys of the row; and how
# to read it: a key of the row, or the candidate of the same run that it must be faster than.
TARGETS: list[tuple[str, float, Row, str]] = [
    ("B/16, B = 8, T = 12: at most 9.4 ms", -9.4, {**TRITON, **B16}, "ms_p50"),
    ("the same against torch.compile max-autotune: 1.2x", 1.2, {**TRITON, **B16}, MAX),
    ("L/14, B = 8, T = 12 against max-autotune: 1.1x", 1.1, {**TRITON, **L14}, MAX),
    ("B/32, B = 1, T = 12: at most 0.33 ms", -0.33, {**TRITON, **B32}, "ms_p50"),
    ("the same against max-autotune: 1.3x", 1.3, {**TRITON, **B32}, MAX),
    ("packed attention, T = 12: 85 % of its roofline", 0.85, PACKED_12, "share_of_floor"),
    ("packed attention, T = 12, against SDPA and its copies: 2x", 2.0, PACKED_12, SDPA),
    ("packed attention, T = 64, against SDPA and its copies: 1x", 1.0, PACKED_64, SDPA),
    ("temporal block of B/16, B = 8, T = 12: at most 0.14 ms", -0.14, BLOCK, "ms_p50"),
]


def targets_table() -> str:
    """Each target with its figure in the newest rows of an H100."""
    rows = [r for r in _measured() if "H100" in r["gpu"]]
    lines = []
    for text, limit, keys, how in TARGETS:
        found = _figure(rows, keys, how)
        if found is None:
            lines.append(f"{text} | {NOT_MEASURED}")
            continue
        met = found <= -limit if limit < 0 else found >= limit
        lines.append(f"{text} | {found:.3g}, {'met' if met else 'not met'}")
    return markdown("target on an H100 | measured", lines)


def _figure(rows: list[Row], keys: Row, how: str) -> float | None:
    def find(wanted: Row) -> Row | None:
        return next((r for r in reversed(rows) if wanted.items() <= r.items()), None)

    fast = find(keys) or {}
    if how in ("ms_p50", "share_of_floor"):
        return fast.get(how)
    if how in fast.get("ratios", {}):
        return fast["ratios"][how]
    slow = find({**keys, "lane": how}) or {}  # timed in turn with ours, as the later of the two
    ratio = slow.get("ratios", {}).get(keys.get("lane"))
    return 1 / ratio if ratio else None


def aot_table() -> str:
    """The worst figures of all compiled kernel configurations, per GPU family."""
    rows, lines = read_rows("aot"), []
    for family in dict.fromkeys(r["family"] for r in rows):
        own = [r for r in rows if r["family"] == family]
        registers, spills = max(r["registers"] for r in own), sum(r["spills"] for r in own)
        shared = max(r["shared_bytes"] for r in own) / 1024
        used = ", ".join(sorted({name for r in own for name in r["tensor"]}))
        cells = f"{len(own)} | {registers} | {spills} | {shared:.0f} KiB | {used}"
        lines.append(f"sm_{family[2:]} | {cells}")
    head = " | kernels | registers, most | spills | shared memory, most | tensor cores"
    return markdown(head, lines)
