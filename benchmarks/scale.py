"""python -m benchmarks.scale: what a library of very many videos costs, on paper.

Times come from rows in benchmarks/results/, sizes of rows from `--record`, which measures them, and
the rest is arithmetic. Sizes of videos and prices are inputs, with the sources that SOURCES names;
each has an option. docs/scale.md has the table of the defaults (benchmarks.tables).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT, append_rows, read_rows
from benchmarks.tables.markdown import NOT_MEASURED, Row, markdown
from stan_infer.checkpoints.presets import preset
from stan_infer.library.database import ROWS
from stan_infer.library.store import File, Store, new_store
from stan_infer.video.spec import ClipSpec

CLIPS = ROOT / "examples" / "motion" / "clips"
MODELS = ("stan-b32", "stan-b16")
SOURCES = {
    "cpu_hour": "dollars: half of an m7g.large (ARM; the rows are of x86) on demand in us-east-1, "
    "as a page of 17 June 2026 says (factualminds.com/blog, "
    "amazon-ec2-on-demand-pricing-instance-families-2026)",
    "gb_month": "dollars: S3 Standard, the first 50 TB, as a page of 7 July 2022 says "
    "(gist.github.com/EverettBerry/a37438006529a55f42da6fdbc44a505c)",
    "film_mbit_s": "a bit rate that is usual for 1080p; our own films are synthetic",
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is not measured here. cpu_hour, gb_month: dollars."""

    videos: float = 1e9
    film_mbit_s: float = 8.0
    cpu_hour: float = 0.0408
    gb_month: float = 0.023


def record_sizes(count: int = 100_000, name: int = 80) -> None:
    """Measure and record what a row of a library takes in rows.db: paths of `name` bytes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        new_store(folder, "{}")
        with Store(folder, 8) as store:
            for i in range(count):
                sha256 = os.urandom(32)
                path = Path(f"/{i:0{name - 5}}.mp4")
                store.put_file(path, File(10**6, 10**18 + i, sha256))
                part = store.add_vector(np.zeros(8, np.float32), None)
                store.add_clip(sha256, [part], frames=100, length_s=4.004, decoder="pyav")
            store.commit()
        size = (folder / ROWS).stat().st_size
    row = {"rows": count, "path_bytes": name, "bytes_per_row": size / count}
    append_rows("library-rows", [row])


def _newest(rows: list[Row]) -> Row | None:
    return max(reversed(rows), key=lambda r: r["date"], default=None)  # the last of a day


def _reading(clips: str) -> Row | None:
    """The newest run of `embed` on these clips."""
    return _newest([r for r in read_rows("embed") if r["clips"] == clips])


def _model(name: str) -> Row | None:
    """The cheapest engine of the newest day, by the CPUs that it was given."""
    rows = [r for r in read_rows("engines") if r["model"] == name]
    last = _newest(rows)
    today = [r for r in rows if last and r["date"][:10] == last["date"][:10]]
    return min(today, key=_cpu_s, default=None)


def _cpu_s(row: Row) -> float:
    """CPU-seconds for a clip."""
    return float(row["latency_ms_p50"]) / 1e3 * int(row["threads"])


def _si(number: float, unit: str) -> str:
    """Two digits with a prefix: 2.1 PB."""
    power = min(max(int(math.log10(number) // 3), 0), 5) if number > 0 else 0
    return f"{float(f'{number / 1000**power:.2g}'):g} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}"


def _dollars(number: float) -> str:
    return f"${float(f'{number:.2g}'):,.0f}"


def _column(clips: str, model: str, given: Inputs) -> list[str]:
    reading, network = _reading(clips), _model(model)
    sizes = _newest(read_rows("library-rows"))
    if reading is None or network is None or sizes is None:
        return [NOT_MEASURED] * 8
    n, config = given.videos, preset(model)
    read_s = reading["embed_s_p50"] * reading["machine"]["cores"] / reading["videos"]
    hours = [n * seconds / 3600 for seconds in (read_s, _cpu_s(network))]
    files = [path.stat().st_size for path in CLIPS.glob("*.mp4")]
    video = sum(files) / len(files) if clips == "short" else given.film_mbit_s * 1e6 / 8 * 60
    pixels = math.prod(ClipSpec.of(config).shape)
    vectors, rows = n * 5 * config.embed_dim, n * sizes["bytes_per_row"]
    return [
        f"{_si(hours[0], 'h')}",
        f"{_si(hours[1], 'h')}",
        NOT_MEASURED,
        _si(n * video, "B"),
        _si(n * pixels, "B"),
        f"{_si(vectors, 'B')}, {_si(rows, 'B')}",
        _dollars(sum(hours) * given.cpu_hour),
        _dollars((vectors + rows) / 1e9 * given.gb_month),
    ]


def scale_table(given: Inputs = Inputs()) -> str:
    """What the videos cost, a column for each kind of video and model."""
    kinds = {"short": "16 frames of 64x64", "long": "a minute of 1080p"}
    head = [f"{given.videos:.0e} videos".replace("e+0", "e")]
    names = (
        "reading, CPU-hours",
        "model, CPU-hours",
        "model, GPU-hours",
        "videos that are fetched",
        "pixels between actors",
        "vectors in 32 and 8 bits, rows of SQLite",
        "CPUs",
        "vectors and rows, a month",
    )
    columns = []
    for clips, kind in kinds.items():
        for model in MODELS:
            head.append(f"{kind}, {model}")
            columns.append(_column(clips, model, given))
    lines = [" | ".join([name, *cells]) for name, *cells in zip(names, *columns, strict=True)]
    return "\n\n".join((markdown(" | ".join(head), lines), *_notes(given)))


def _notes(given: Inputs) -> list[str]:
    """Where each constant comes from."""
    found: list[str] = []
    for clips in ("short", "long"):
        if row := _reading(clips):
            found.append(
                f"reading ({clips}): {row['videos']} videos in {row['embed_s_p50']:.1f} s on "
                f"{_of(row)}: all of `embed` with the demo (8 frames, a small model) and its start"
            )
    for model in MODELS:
        if row := _model(model):
            found.append(
                f"{model}: {row['latency_ms_p50']:.0f} ms in {row['engine']}, {row['graph']}, with "
                f"{row['threads']} threads on {_of(row)}"
            )
    if row := _newest(read_rows("library-rows")):
        found.append(
            f"rows: {row['bytes_per_row']:.0f} bytes, measured on {row['rows']:,} with paths of "
            f"{row['path_bytes']} ({row['date'][:10]})"
        )
    values = dataclasses.asdict(given)
    found += [f"`--{k.replace('_', '-')} {values[k]:g}`: {text}" for k, text in SOURCES.items()]
    return ["\n".join(f"- {line}." for line in found)]


def _of(row: Row) -> str:
    machine = row["machine"]
    return f"{machine['cores']} cores of {machine['cpu']} ({row['date'][:10]})"


def main() -> None:
    """Print the table, or measure the size of a row and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    for field in dataclasses.fields(Inputs):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    given: dict[str, Any] = vars(parser.parse_args())
    if given.pop("record"):
        record_sizes()
    print(scale_table(Inputs(**given)))


if __name__ == "__main__":
    main()
