"""The benchmark of embed runs both sides on a few clips, and its rows become a table."""

import shutil

import pytest

from benchmarks import embed
from benchmarks.record import ROOT
from benchmarks.tables import speed
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model

MOTION = ROOT / "examples" / "motion"


def test_both_sides_give_the_same(tmp_path, monkeypatch):
    pytest.importorskip("decord")
    export_model(load_model(MOTION / "motion.safetensors"), tmp_path / "model", tower="video")
    clips = tmp_path / "short"
    clips.mkdir()
    for path in sorted((MOTION / "clips").glob("*.mp4"))[:3]:
        shutil.copy(path, clips)
    row = embed.compare(tmp_path / "model", clips, 1)
    assert row["videos"] == 3 and row["min_cosine"] > embed.MIN_COSINE
    assert row["speedup"] == row["loop_s_p50"] / row["embed_s_p50"]
    machine = {"cpu": "X", "cores": 2, "system": "Linux", "python": "3.11"}
    versions = {"torch": "2", "onnxruntime": "1"}
    shown = {**row, "machine": machine, "versions": versions, "date": "today"}
    monkeypatch.setattr(speed, "newest", lambda *_: [shown])
    table = speed.embed_table()
    assert f"| 3 clips of 16 frames, 64x64 | {row['embed_s_p50']:.1f} |" in table
    assert "today, av " in table
