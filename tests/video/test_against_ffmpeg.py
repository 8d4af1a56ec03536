"""Every frame of some 280 made files, against the ffmpeg command line.

One file for each codec, container and oddity (`zoo.RECIPES`). `python -m tests.video.zoo_table`
prints the largest difference of each, decord's beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.video.clip import read_clip_info, resize_crop, sample_indices
from stan_infer.video.pyav_reader import read_pyav
from stan_infer.video.spec import ClipSpec
from tests.video import zoo, zoo_table
from tests.video.zoo import Frames, Zoo

pytest.importorskip("av")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Zoo:
    if why := zoo.missing():
        if os.environ.get("STAN_INFER_REQUIRE_FFMPEG") == "1":
            pytest.fail(f"STAN_INFER_REQUIRE_FFMPEG=1, but {why}")
        pytest.skip(why)
    return Zoo(tmp_path_factory.mktemp("zoo"))


def test_there_are_enough():
    suffixes = {name.rpartition(".")[2] for name in zoo.RECIPES}
    wanted = "mp4 mov mkv webm avi flv f4v ts m2ts mts mpg vob wmv asf divx ogv 3gp 3g2 mxf nut ivf"
    assert suffixes >= {*wanted.split(), *"gif h264 hevc m4v m1v m2v obu".split()}
    assert len(zoo.RECIPES) > 250


def test_the_pictures_can_be_told_apart(made):
    """Otherwise the comparisons below could not fail."""
    frames = zoo.frames_of(made.file("ffv1rgb.mkv"))
    assert len(frames) == zoo.FRAMES
    for i, frame in enumerate(frames):
        assert np.array_equal(frame, zoo.picture(i)) and zoo.number(frame) == i
    lossy = zoo.frames_of(made.file("h264open.mp4"))
    assert [zoo.number(frame) for frame in lossy] == list(range(zoo.FRAMES))


def assert_near(name: str, found: Frames, right: Frames):
    largest, mean = zoo.difference(found, right)
    assert largest <= zoo.limits(name)[0] and mean <= zoo.limits(name)[1], (largest, mean)


@pytest.mark.parametrize("name", zoo.RECIPES)
def test_every_frame_is_that_of_ffmpeg(made, name):
    path, right = made.file(name), zoo.right_frames(made, name)
    if not right:
        with pytest.raises(InputError):
            read_pyav(path, np.arange, lambda image: image)
        return
    numbers = [zoo.number(frame) for frame in right]
    every = read_pyav(path, np.arange, lambda image: image)
    found = [every.images[i] for i in range(every.total_frames)]
    assert [zoo.number(frame) for frame in found] == numbers
    assert_near(name, found, right)
    assert every.size == right[0].shape[:2]
    # Only some of the frames: other packets are decoded then.
    for taken in choices(len(right)):
        some = read_pyav(path, taken, lambda image: image)
        assert some.total_frames == len(right)
        for i, image in some.images.items():
            assert np.array_equal(image, found[i]), f"frame {i} of {taken(len(right))}"
    side = min(every.size)
    clip = read_clip_info(path, ClipSpec(frames=8, short_side=side, crop=side))
    assert clip.total_frames == len(right)
    assert clip.indices.tolist() == sample_indices(len(right), 8).tolist()
    assert_near(
        name, list(clip.pixels), list(resize_crop([right[i] for i in clip.indices], side, side))
    )


def choices(total: int) -> list[Callable[[int], np.ndarray]]:
    alone = sorted({0, total // 2, total - 2, total - 1} - {-1})
    return [
        lambda total: sample_indices(total, 4),
        lambda total: np.arange(1 % total, total, 7),
        *(lambda total, i=i: np.array([i]) for i in alone),
    ]


def test_the_table(made, monkeypatch, capsys):
    pytest.importorskip("decord")
    monkeypatch.setattr("sys.argv", ["zoo_table", "h264.m4v"])
    zoo_table.main()
    assert "| h264.m4v | 60 | 0 | right | right |" in capsys.readouterr().out
    path = made.file("mpeg2.ts")
    wrong = zoo_table.verdict(path, zoo.right_frames(made, "mpeg2.ts"))
    assert all("wrong (mean" in cell for cell in wrong)
