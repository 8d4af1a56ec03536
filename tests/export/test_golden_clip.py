"""The clip of golden data: its pictures are known without decoding, and are what is decoded."""

import io
import json

import numpy as np
import pytest

av = pytest.importorskip("av")

from stan_infer.export import golden_clip  # noqa: E402 (after importorskip)
from stan_infer.export.golden_clip import CLIP, FRAMES, SIDE, frames, planes  # noqa: E402
from stan_infer.video.clip import read_clip_info, sample_indices  # noqa: E402
from stan_infer.video.spec import ClipSpec  # noqa: E402
from tests.exported import exported  # noqa: E402
from tests.golden.make_clip import encoded  # noqa: E402


@pytest.mark.parametrize("made", ["as it lies in the package", "as it is encoded now"])
def test_encoding_has_changed_no_sample(made):
    with av.open(str(CLIP) if "package" in made else io.BytesIO(encoded())) as container:
        found = list(container.decode(video=0))
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.profile) == ("h264", "High")
    assert len(found) == FRAMES and CLIP.stat().st_size < 30_000
    kinds = "".join(av.video.frame.PictureType(frame.pict_type).name for frame in found)
    assert kinds.count("I") > 1 and "B" in kinds and "P" in kinds
    for number, frame in enumerate(found):
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)
        for plane, wanted in zip(frame.planes, planes(number), strict=True):
            lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
            np.testing.assert_array_equal(lines[:, : plane.width], wanted)


@pytest.mark.parametrize("t", [1, 8, 12, 64])
def test_it_is_read_as_it_was_drawn(t):
    clip = read_clip_info(CLIP, ClipSpec(frames=t, short_side=SIDE, crop=SIDE, decoder="pyav"))
    assert clip.indices.tolist() == sample_indices(FRAMES, t).tolist()
    np.testing.assert_array_equal(clip.pixels, frames(clip.indices.tolist()))


def test_faults_of_a_decoder_would_show():
    """Frames differ from their neighbours, and from themselves with other colours or turned."""
    made = frames(range(FRAMES)).astype(int)
    assert (np.abs(np.diff(made, axis=0)).max(axis=(1, 2, 3)) > 40).all()
    for other in (made[..., ::-1], made[:, ::-1], made[:, :, ::-1], made.swapaxes(1, 2)):
        assert np.abs(made - other).max() > 40
    for matrix, full in ((5, False), (9, False), (1, True)):
        rgb = golden_clip.rgb_of_planes(planes(0), matrix, full)
        assert np.abs(made[0] - rgb).max() > 10


def test_a_folder_has_it_with_the_frames_that_it_takes(tiny_model):
    for options, t in (({}, tiny_model.config.frames), ({"frames": 3}, 3)):
        folder = exported(tiny_model, **options)
        golden = json.loads((folder / "manifest.json").read_text())["golden"]
        assert golden["clip"] == "golden.clip"
        assert (folder / "golden.clip").read_bytes() == CLIP.read_bytes()
        wanted = frames(sample_indices(FRAMES, t).tolist())
        np.testing.assert_array_equal(np.load(folder / "golden.npz")["clip"], wanted)
