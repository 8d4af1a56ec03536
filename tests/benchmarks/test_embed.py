"""The benchmarks of embed and of libraries run on a few clips, and their rows become tables."""

import shutil

import numpy as np
import pytest

import stan_infer as si
from benchmarks import embed, embed_rate
from benchmarks import search as searches
from benchmarks.record import ROOT
from benchmarks.tables import library, speed
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model
from stan_infer.library.row_filter import RowFilter
from stan_infer.library.search import Searcher
from tests.library.fake_stack import FakeSession

MOTION = ROOT / "examples" / "motion"
WHERE = {
    "machine": {"cpu": "X", "cores": 2, "system": "Linux", "python": "3.11"},
    "versions": {"torch": "2", "onnxruntime": "1"},
    "date": "today",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The demo, exported, and three of its clips."""
    folder = tmp_path_factory.mktemp("embed")
    export_model(load_model(MOTION / "motion.safetensors"), folder / "model", tower="video")
    (folder / "short").mkdir()
    for path in sorted((MOTION / "clips").glob("*.mp4"))[:3]:
        shutil.copy(path, folder / "short")
    return folder


def test_both_sides_give_the_same(place, monkeypatch):
    pytest.importorskip("decord")
    row = embed.compare(place / "model", place / "short", 1)
    assert row["videos"] == 3 and row["min_cosine"] > embed.MIN_COSINE
    assert row["speedup"] == row["loop_s_p50"] / row["embed_s_p50"]
    monkeypatch.setattr(speed, "newest", lambda *_: [row | WHERE])
    table = speed.embed_table()
    assert f"| 3 clips of 16 frames, 64x64 | {row['embed_s_p50']:.1f} |" in table
    assert "today, av " in table


def test_the_rate_into_a_library(place, monkeypatch):
    pytest.importorskip("decord")
    row = embed_rate.measure(place / "model", sorted((place / "short").iterdir()), 1, 1, 1)
    assert row["chosen"] == row["workers"] == row["threads"] == 1
    assert len(si.open_library(place / "library").ids) == row["clips"] == 3
    slower = max(row["decoding_s_p50"], row["model_s_p50"])
    assert row["share_of_slower"] == pytest.approx(slower / row["embed_s_p50"])
    assert row["model_cpu_s_p50"] > 0 < row["open_s"]
    rows = [row | WHERE, row | WHERE | {"embed_s_p50": 0.1}]  # of two machines
    monkeypatch.setattr(library, "by_machine", lambda *_: [[row] for row in rows])
    table = library.embed_rate_table()
    for row in rows:
        assert f"| model, 1 thread | 1 | {3 / row['embed_s_p50']:.1f} |" in table
    assert table.count("| workers |") == 2


def test_a_library_that_is_searched(tmp_path, monkeypatch):
    def vectors(count, seed):
        made = np.random.default_rng(seed).standard_normal((count, 24), np.float32)
        yield made / np.linalg.norm(made, axis=1, keepdims=True)

    monkeypatch.setattr(searches, "WIDTH", 24)
    monkeypatch.setattr(searches, "vectors", vectors)
    session = FakeSession()
    searches.make(tmp_path / "library", session, 300)
    found = si.open_library(tmp_path / "library")
    searcher = Searcher(found, session)
    assert len(found.ids) == 310 and searches.agrees(searcher, 10) == 1.0
    assert len(RowFilter(path="videos/07/*").rows(found.path, found.ids)) == 3
    assert len(RowFilter(longer=59).rows(found.path, found.ids)) == 5


def test_tables_of_libraries(monkeypatch):
    times = {"ms_p50": 70.4, "ms_p95": 90.2}
    kinds = {
        "search": times | {"vectors": 10**6, "text": times, "path": times, "recall_at_10": 1.0}
        | {"open_s": 0.4, "private_mib": 60.0},
        "serve": {"vectors": 10**5, "start_s": 3.0, "private_mib": 300.0}
        | {"runs": [times | {"clients": 8, "per_s": 20.0, "busy": 1, "answers": 9}]},
        "store": {"name": "library", "vectors": 100, "append_s": 2.0, "disk_mib": 3.0, "files": 4}
        | {"install_mib": 0.0, "after_kill": [{"lost": -256, "part": 0}]},
    }  # fmt: skip
    monkeypatch.setattr(library, "newest", lambda kind, *_, what="": [kinds[what or kind] | WHERE])
    search = library.search_table()
    assert "| 1,000,000 | 70\xa0ms\xa0(90) |" in search and "| not measured | 1.000 |" in search
    assert "| 100,000 | 8 | 20.0 | 70\xa0ms | 90\xa0ms | 1\xa0of\xa010 |" in library.serve_table()
    assert "| library | 100 | 2\xa0s | 3\xa0MiB | 4 | 0 | 0 |" in library.stores_table()
