"""The benchmark of a long video runs on a small one, and its row becomes a table."""

from types import SimpleNamespace

import pytest

from benchmarks import hour
from benchmarks.tables import speed
from stan_infer.checkpoints.load import load_model
from tests.benchmarks.test_embed import WHERE
from tests.exported import exported


def test_both_sides_give_the_same(tmp_path, monkeypatch):
    pytest.importorskip("decord")
    monkeypatch.setattr(hour, "HEIGHT", 64)
    monkeypatch.setattr(hour, "WIDTH", 96)
    minute, video = tmp_path / "minute.mp4", tmp_path / "video.mp4"
    hour.write_minute(minute)
    hour.write_video(video, minute, 2)
    model = exported(load_model(hour.DEMO), tower="video", split=True)
    (tmp_path / "motion").symlink_to(model)
    args = SimpleNamespace(seconds=8.0, stride=4.0, frames=8)
    row = {"model": "motion", **hour.measure(tmp_path / "motion", video, 2, 0.5, args)}
    assert (row["windows"], row["loop_windows"]) == (29, 6)  # of 120 s and of 30 s
    assert row["min_cosine"] > hour.MIN_COSINE and row["ratio"] > 0
    assert row["peak_mib"] == max(row["peaks_mib"]) > 0 and row["workers"] >= 1
    monkeypatch.setattr(speed, "newest", lambda *_: [row | WHERE])
    table = speed.hour_table().replace("\N{NO-BREAK SPACE}", " ")
    assert "| motion | 2 min, 29 windows |" in table and "| 0.5 min, 6 windows |" in table
