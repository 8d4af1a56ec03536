"""The note about long videos: once per run, with a count, and honest where no time is known."""

import logging
from pathlib import Path

import pytest

from stan_infer.video.clip import read_clip_info
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.gaps import Gaps, gap_note
from stan_infer.video.spec import ClipSpec

av = pytest.importorskip("av")
from tests.video import broken_videos as make  # noqa: E402 (after importorskip)

TWO = ClipSpec(frames=2, short_side=32, crop=32)
SLOW = dict(frames=700, size=(16, 16), codec="mpeg4", gop=50)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """700 frames, a frame in 0.4 s: 280 s."""
    folder = tmp_path_factory.mktemp("long")
    return make.make_clip(folder / "long.mp4", times=[10 * i for i in range(700)], **SLOW)


def gap(path, frames=2, decoder="pyav"):
    spec = ClipSpec(frames=frames, short_side=16, crop=16, decoder=decoder)
    return read_clip_info(path, spec).gap_s


def test_seconds_by_container(long, tmp_path):
    assert gap(long) == pytest.approx(140, rel=0.01)
    for name in ("a.mkv", "a.avi"):
        path = make.make_clip(tmp_path / name, **SLOW)  # 25 a second
        assert gap(path) == pytest.approx(14, rel=0.01), name
    raw = make.make_clip(tmp_path / "raw.m4v", container="m4v", **SLOW)
    assert gap(raw) is None
    assert gap(raw, frames=8) == 0.0  # too few frames between to ask
    lie = make.lie_duration(long, tmp_path / "lie.mp4")  # FFmpeg adds up the frames' own times
    assert gap(lie) == pytest.approx(140, rel=0.01)


def test_seconds_of_decord(tmp_path):
    pytest.importorskip("decord")
    path = make.make_clip(tmp_path / "a.mp4", frames=50, times=[50 * i for i in range(50)])
    assert gap(path, decoder="decord") == pytest.approx(50, rel=0.05)


def test_it_passes_through_the_worker(long):
    here = read_clip_info(long, TWO)
    (_, there), = read_clips([long], TWO)  # fmt: skip
    assert here.gap_s == there.gap_s == pytest.approx(140, rel=0.01)


def test_one_note_counts_all():
    gaps = Gaps()
    assert gaps.note(8) is None
    for gap in (0.0, 5.0, 5.1, 450.0, 0.0):
        gaps.add(Path(f"/x/{gap:g}.mp4"), gap)
        assert (gap_note(Path("/x/a.mp4"), gap, 8) is not None) == (gap > 5)
    note = gaps.note(8)
    assert note.startswith("2 of 5 videos: more than 5 s lie between two of the 8 frames")
    assert "about 450 s in 450.mp4" in note and "/x/" not in note
    gaps.add(Path("raw.h264"), None)
    unknown = "1 of 6 videos have more than 150 frames between two that are looked at"
    assert unknown in gaps.note(8)
    one = gap_note(Path("a/long.mp4"), 300.0, 12)
    assert one.startswith("a/long.mp4: 12 frames of 3600 s are looked at, one in 300.0 s; ")
    assert "from one in 5 s on" in one and "--windows 10" in one


def test_a_run_says_it_once(long, tmp_path, caplog):
    from stan_infer.checkpoints.presets import preset
    from stan_infer.engines.open import open_session
    from stan_infer.library.embed import embed_videos
    from stan_infer.network.model import Stan, init_random

    session = open_session(init_random(Stan(preset("stan-tiny")), seed=1), engine="eager")
    spec = ClipSpec.of(session.config, decoder="pyav")
    spec = ClipSpec(frames=2, short_side=spec.short_side, crop=spec.crop)
    short = make.make_clip(tmp_path / "short.mp4")
    with caplog.at_level(logging.WARNING, logger="stan_infer"):
        assert len(list(embed_videos(session, [long, short, long], spec=spec))) == 3
    found = [r.getMessage() for r in caplog.records]
    assert len(found) == 1 and found[0].startswith("2 of 3 videos: more than 5 s")
    assert "2 frames" in found[0]
