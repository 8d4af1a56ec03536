"""The C++ reader converts pixels as Python's does, to the bit, whatever FFmpeg each has."""

import json

import numpy as np
import pytest

av = pytest.importorskip("av")

from stan_infer.video.rgb import upright_rgb  # noqa: E402 (after importorskip)
from tests.video import broken_videos as make  # noqa: E402
from tests.video import test_hdr as hdr  # noqa: E402
from tests.video.test_rgb import EIGHT, made  # noqa: E402

FORMATS = [f"yuv{s}p{d}" for s in ("420", "422", "444") for d in ("", "10le", "12le")]
FORMATS += ["yuv420p9le", "yuv420p16le", "yuva420p", "gray", "ya8", "gray10le", "gbrp10le", "bgr0"]


def stored(path, name, size, *, matrix=2, limits=0):
    """A lossless file of one frame."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25, options={"threads": "1"})
        stream.width, stream.height = size
        stream.pix_fmt = name
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, limits
        out.mux(stream.encode(made(name, *size, matrix=matrix, limits=limits)))
        out.mux(stream.encode())
    return path


def compare(program, path, tmp_path):
    answer = program.json("frames", path, "1", tmp_path / "raw", probe=True)
    raw = np.fromfile(tmp_path / "raw", np.uint8).reshape(answer["shapes"][0][1:])
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        np.testing.assert_array_equal(raw, upright_rgb(frame, path))
    return frame


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [(64, 48), (63, 47), (16, 2)], ids=str)
def test_formats(plain, tmp_path, name, size):
    frame = compare(plain, stored(tmp_path / "a.mkv", name, size), tmp_path)
    assert (frame.format.name, frame.width, frame.height) == (name, *size)


@pytest.mark.parametrize("matrix", [1, 5, 7, 9, 10])
@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize("name", ["yuv420p", "yuv420p10le", "yuv444p12le", "gbrp10le"])
def test_matrices_and_ranges(plain, tmp_path, name, matrix, limits):
    path = stored(tmp_path / "a.mkv", name, (64, 48), matrix=matrix, limits=limits)
    frame = compare(plain, path, tmp_path)
    assert "gbr" in name or (frame.colorspace, frame.color_range) == (matrix, limits)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv420p10le"])
def test_interlaced(plain, tmp_path, pix_fmt):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        options = {"x264-params": "interlaced=1:qp=4", "threads": "1"}
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
        out.mux(stream.encode(made(pix_fmt, 64, 64)))
        out.mux(stream.encode())
    assert compare(plain, path, tmp_path).interlaced_frame


@pytest.mark.parametrize("matrix", EIGHT)
def test_orientations(plain, tmp_path, matrix):
    still = make.make_clip(tmp_path / "plain.mp4", frames=1, size=(48, 80))
    compare(plain, make.orient(still, tmp_path / "turned.mp4", matrix), tmp_path)


@pytest.mark.parametrize("matrix", [(1, 0.5, 0, 1), (1, 1, 1, 1), (0.7, 0.7, -0.7, 0.7)])
def test_other_display_matrices_are_refused(plain, tmp_path, matrix):
    still = make.make_clip(tmp_path / "plain.mp4", frames=1)
    path = make.orient(still, tmp_path / "slanted.mp4", matrix)
    done = plain.run("frames", path, "1", tmp_path / "raw", probe=True)
    assert done.returncode == 2 and "slant the picture" in done.stderr


@pytest.mark.parametrize("name", ["yuv440p", "yuv440p10le", "yuv410p"])
def test_what_cannot_be_the_same_is_refused(plain, tmp_path, name):
    path = stored(tmp_path / "a.mkv", name, (64, 48))
    done = plain.run("frames", path, "1", tmp_path / "raw", probe=True)
    assert done.returncode == 2 and f"its pixels are {name}" in done.stderr


@pytest.mark.parametrize("transfer", hdr.TRANSFERS)
@pytest.mark.parametrize("codec", ["ffv1", "libx264"])
def test_the_transfer_of_hdr_is_named(plain, small, tmp_path, transfer, codec):
    path = hdr.stored(tmp_path / "a.mkv", transfer, codec)
    done = plain.run(small, path, "--json")
    name = hdr.TRANSFERS[transfer]
    assert json.loads(done.stdout)["hdr"] == name
    assert done.stderr == (f"note: {path} is HDR ({name}); its values are taken as they are "
                           "stored\n" if name else "")  # fmt: skip
