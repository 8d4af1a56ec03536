"""The costs on paper follow their rows and inputs."""

import dataclasses

import pytest

from benchmarks import scale
from benchmarks.scale import Inputs, scale_table

MACHINE = {"cpu": "a CPU", "cores": 2}
ROWS = {
    "embed": [
        {"clips": c, "embed_s_p50": s, "videos": 10, "machine": MACHINE, "date": "2026-01-02"}
        for c, s in (("short", 18.0), ("long", 36.0))
    ],
    "engines": [
        {
            "model": m, "engine": "ort", "graph": "fused", "threads": t, "latency_ms_p50": ms,
            "machine": MACHINE, "date": "2026-01-02T10:00",
        }
        for m in scale.MODELS for t, ms in ((1, 720.0), (2, 720.0))
    ],
    "library-rows": [
        {"rows": 1000, "path_bytes": 80, "bytes_per_row": 500.0, "date": "2026-01-02"}
    ],
}  # fmt: skip


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(scale, "read_rows", ROWS.get)


def cells(text, name):
    (line,) = (x for x in text.splitlines() if x.startswith(f"| {name} |"))
    return line.replace("\N{NO-BREAK SPACE}", " ").strip("| ").split(" | ")[1:]


def test_arithmetic(rows):
    text = scale_table(Inputs(videos=1e6, cpu_hour=0.5, gb_month=2.0, film_mbit_s=8))
    assert cells(text, "reading, CPU-hours") == ["1 kh", "1 kh", "2 kh", "2 kh"]
    assert cells(text, "model, CPU-hours") == ["200 h"] * 4
    assert cells(text, "model, GPU-hours") == ["not measured"] * 4
    assert cells(text, "videos that are fetched")[2:] == ["60 TB"] * 2
    assert cells(text, "pixels between actors") == ["1.8 TB"] * 4
    assert cells(text, "vectors, rows of SQLite") == ["2 GB, 500 MB"] * 4
    assert cells(text, "CPUs") == ["$600", "$600", "$1,100", "$1,100"]
    assert cells(text, "vectors and rows, a month") == ["$5"] * 4
    for said in ("18.0 s on 2 cores of a CPU", "720 ms in ort, fused, with 1", "`--cpu-hour 0.5`"):
        assert said in text


def test_without_rows_nothing_is_made_up(monkeypatch):
    monkeypatch.setattr(scale, "read_rows", lambda kind: [])
    text = scale_table()
    assert "$" not in text and text.count("not measured") == 8 * 4


def test_every_price_has_a_source():
    assert {f.name for f in dataclasses.fields(Inputs)} - {"videos"} == set(scale.SOURCES)


def test_the_size_of_a_row_is_measured(monkeypatch):
    found = []
    monkeypatch.setattr(scale, "append_rows", lambda kind, rows: found.append((kind, *rows)))
    scale.record_sizes(count=2000)
    ((kind, row),) = found
    assert kind == "library-rows" and 200 < row["bytes_per_row"] < 1000
