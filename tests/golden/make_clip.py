"""python -m tests.golden.make_clip: encode the clip of golden data, export/golden_clip.mp4.

So finely, and of such pictures, that decoding gives every sample as it was drawn; then the result
is always the same file. tests/export/test_golden_clip.py looks at what was made.
"""

import io
from fractions import Fraction

import av
import numpy as np

from stan_infer.export.golden_clip import BT709, CLIP, FRAMES, SIDE, planes

LIMITED = 1  # FFmpeg's number of the range
SETTINGS = (
    "qp=1:ipratio=1:pbratio=1:aq-mode=0:trellis=0:no-psy=1:deadzone-inter=32:deadzone-intra=32:"
    "weightp=0:scenecut=0:b-adapt=0:open-gop=0"
)
OPTIONS = {"preset": "veryslow", "g": "9", "bf": "2", "threads": "1", "x264-params": SETTINGS}


def picture(number):
    frame = av.VideoFrame(SIDE, SIDE, "yuv420p")
    for plane, values in zip(frame.planes, planes(number), strict=True):
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        lines[:, : plane.width] = values
    frame.colorspace, frame.color_range = BT709, LIMITED
    frame.pts, frame.time_base = number, Fraction(1, 25)
    return frame


def encoded():
    """The file's bytes, without x264's own text, which names its version."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=25, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = BT709, LIMITED
        without = av.BitStreamFilterContext("filter_units=remove_types=6", stream)
        packets = [p for i in range(FRAMES) for p in stream.encode(picture(i))]
        for packet in [*packets, *stream.encode()]:
            container.mux(without.filter(packet))
        container.mux(without.filter(None))
    return out.getvalue()


if __name__ == "__main__":
    CLIP.write_bytes(encoded())
