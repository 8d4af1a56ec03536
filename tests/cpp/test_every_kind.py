"""A folder gives the rankings and scores of Python for videos of every kind that is tested."""

from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from stan_infer.video.synthetic import moving_frames  # noqa: E402 (after importorskip)
from tests.conftest import ROOT  # noqa: E402
from tests.cpp.test_many_videos import CLIPS, LABELS, in_cpp, in_python, same  # noqa: E402
from tests.video import broken_videos as make  # noqa: E402

SHARED = ROOT.parent / "shared" / "videos"
# By the C++ program alone: cut before the first key frame, and a video and something else at once
# (cpp/README.md, "One answer in both languages").
REFUSED = {"h264open_1.1.mkv", "h264open_bytecut777.ts", "intrarefresh_cut.ts"}
REFUSED |= {"poly_local.mp4", "poly_net.mp4"}
INTERLACED = {"x264-params": "interlaced=1"}
# File: codec, format of pixels, options, and what is written of its colours: matrix, range,
# transfer, in FFmpeg's numbers.
KINDS = {
    **{f"{s}-8.mp4": ("libx264", f"yuv{s}p", {}, ()) for s in ("420", "422", "444")},
    **{f"{s}-10.mp4": ("libx264", f"yuv{s}p10le", {}, ()) for s in ("420", "422", "444")},
    **{f"{s}-12.mkv": ("ffv1", f"yuv{s}p12le", {}, ()) for s in ("420", "422", "444")},
    "hevc-8.mp4": ("libx265", "yuv420p", {}, ()),
    "hevc-10.mov": ("libx265", "yuv420p10le", {}, ()),
    "hevc-12.mp4": ("libx265", "yuv420p12le", {}, ()),
    "interlaced-8.mp4": ("libx264", "yuv420p", INTERLACED, ()),
    "interlaced-422.mp4": ("libx264", "yuv422p", INTERLACED, ()),
    "interlaced-10.mp4": ("libx264", "yuv420p10le", INTERLACED, ()),
    "interlaced-mpeg2.mpg": ("mpeg2video", "yuv420p", {"flags": "+ildct+ilme"}, ()),
    "pq.mp4": ("libx265", "yuv420p10le", {}, (9, 1, 16)),
    "hlg.mp4": ("libx265", "yuv420p10le", {}, (9, 1, 18)),
    "pq-444.mkv": ("ffv1", "yuv444p12le", {}, (9, 1, 16)),
    "709.mp4": ("libx264", "yuv420p", {}, (1, 1, 1)),
    "709-full.mp4": ("libx264", "yuv420p", {}, (1, 2, 1)),
    "2020-full.mp4": ("libx264", "yuv422p10le", {}, (9, 2, 1)),
    "240m.mkv": ("ffv1", "yuv420p", {}, (7, 1, 7)),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {}, ()),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}, ()),
    "grey.mkv": ("ffv1", "gray", {}, ()),
    "rgb.mkv": ("ffv1", "gbrp10le", {}, ()),
}


def written(path, codec, pix_fmt, options, colours, size=(96, 112)):
    """A video of 20 frames, with fields where it is interlaced."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={**options, "threads": "1"})
        (stream.height, stream.width), stream.pix_fmt = size, pix_fmt
        for place in (stream.codec_context,) if colours else ():
            place.colorspace, place.color_range, place.color_trc = colours
        for i, image in enumerate(moving_frames(20, *size, seed=len(path.stem) % 5)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            if colours:
                frame.colorspace, frame.color_range, frame.color_trc = colours
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, kind in KINDS.items():
        written(folder / name, *kind)
    written(folder / "odd.mkv", "ffv1", "yuv420p", {}, (), size=(95, 113))
    written(folder / "odd-10.mkv", "ffv1", "yuv420p10le", {}, (), size=(95, 113))
    make.turn(written(folder / "plain.mp4", *KINDS["709.mp4"]), folder / "turned.mp4", 90)
    return folder


def test_rankings_and_scores_are_those_of_python(cli, plain, exported, videos):
    options = ("--labels", LABELS, "--top", "0", "--threads", "1")
    code, wanted = in_python(cli, exported, videos, CLIPS, *options)
    assert code == 0 and len(wanted) == len(KINDS) + 4 + len(list(CLIPS.glob("*.mp4")))
    assert {record["hdr"] for record in wanted} == {"PQ", "HLG", None}
    ended, found = in_cpp(plain, exported, videos, CLIPS, *options)
    assert ended == 0
    for mine, record in zip(found, wanted, strict=True):
        same(mine, record)
    # The clips are told apart, or equal rankings would say nothing.
    assert len({tuple(round(s["score"], 4) for s in r["scores"]) for r in found}) > len(KINDS) // 2


def test_odd_files(cli, plain, exported):
    if not SHARED.is_dir():
        pytest.skip(f"there are no {SHARED}")
    options = ("--labels", LABELS, "--top", "0", "--threads", "1")
    wanted = {r["video"]: r for r in in_python(cli, exported, SHARED, *options)[1]}
    found = {r["video"]: r for r in in_cpp(plain, exported, SHARED, *options)[1]}
    assert [*found] == [*wanted]
    refused = {video for video, record in found.items() if "error" in record}
    assert {video.rsplit("/")[-1] for video in refused} == REFUSED
    for video in wanted.keys() - refused:
        same(found[video], wanted[video])
