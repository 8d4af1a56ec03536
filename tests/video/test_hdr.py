"""The transfer of a video in HDR is named."""

import numpy as np
import pytest

av = pytest.importorskip("av")

from stan_infer.video.clip import read_clip_info  # noqa: E402 (after importorskip)
from stan_infer.video.spec import ClipSpec  # noqa: E402
from stan_infer.video.windows import Windows, plan_windows, read_windows  # noqa: E402

TRANSFERS = {16: "PQ", 18: "HLG", 1: None, 14: None, 2: None}
SPEC = ClipSpec(frames=4, short_side=32, crop=32)


def stored(path, transfer, codec="ffv1", pix_fmt="yuv420p10le"):
    """A video of 8 frames that names a transfer."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=8, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.color_trc = transfer
        for level in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 25 * level, np.uint8))
            frame = frame.reformat(format=pix_fmt)
            frame.color_trc = transfer
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("form", [("a.mkv", "ffv1"), ("a.mp4", "libx264")], ids=lambda f: f[1])
def test_the_clip_names_it(tmp_path, transfer, form):
    path = stored(tmp_path / form[0], transfer, form[1])
    assert read_clip_info(path, SPEC).hdr == TRANSFERS[transfer]
    plan = plan_windows(path, Windows(seconds=0.5))
    (first, *_) = read_windows(path, SPEC, plan.total_frames, plan.windows)
    assert first.hdr == TRANSFERS[transfer]
