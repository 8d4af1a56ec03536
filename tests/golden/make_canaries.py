"""python -m tests.golden.make_canaries: draw the canary clips of stan_infer/library/canaries.

Small videos in which shapes move over a texture: other sizes than a model's, so that resizing and
cropping count, more frames than are sampled, B-frames, and colours of which no two channels are
alike. Made once; every library holds their vectors, so a new set is a new schema of library.json.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FOLDER = Path(__file__).parents[2] / "stan_infer" / "library" / "canaries"
SIZES = ((160, 240), (240, 176), (144, 256), (192, 192))  # height, width
FRAMES = (50, 33, 71, 90)


def frame(seed: int, height: int, width: int, t: float) -> np.ndarray:
    """uint8 [H, W, 3] at time t of 0 to 1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / (9 + 4 * seed + 3 * c) + y / (17 - 3 * c) + seed * c) for c in range(3)]
    out = np.stack([110 + 35 * w + 15 * c * (seed % 3) for c, w in enumerate(waves)], -1)
    angle = 2 * np.pi * (t + seed / 4)
    cy, cx = height * (0.5 + 0.3 * np.sin(angle)), width * (0.5 + 0.35 * np.cos(angle + seed))
    radius = height * (0.12 + 0.1 * t * (seed % 2))
    disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    bar = abs(x - width * t) < 7 + 3 * seed
    out[bar] = ((250, 200, 20), (20, 60, 240), (240, 30, 160), (10, 230, 90))[seed]
    out[disc] = ((220, 30, 40), (30, 210, 60), (250, 240, 30), (40, 50, 230))[seed]
    return out.clip(0, 255).astype(np.uint8)


def main() -> None:
    """Write the clips."""
    FOLDER.mkdir(exist_ok=True)
    for seed, ((height, width), count) in enumerate(zip(SIZES, FRAMES, strict=True)):
        with av.open(str(FOLDER / f"{seed}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=25, options={"crf": "30", "preset": "slow"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.codec_context.thread_count = 1
            for i in range(count):
                image = frame(seed, height, width, i / count)
                image = av.VideoFrame.from_ndarray(image, format="rgb24")
                image.pts, image.time_base = i, Fraction(1, 25)
                out.mux(stream.encode(image))
            out.mux(stream.encode())


if __name__ == "__main__":
    main()
