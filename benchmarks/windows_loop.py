"""python -m benchmarks.windows_loop FOLDER VIDEO SECONDS STRIDE MINUTES OUT.npy: windows by hand.

As benchmarks.decord_loop, for windows of one video: each reads its own frames and passes the whole
network by itself. Prints the seconds without the imports and the opening of the model.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import decord
import numpy as np

from benchmarks.decord_loop import opened_frames


def main() -> None:
    """Embed the windows of the first minutes of a video; write the embeddings [windows, E]."""
    model, video, *numbers, out = sys.argv[1:]
    seconds, stride, minutes = map(float, numbers)
    frames, embed = opened_frames(Path(model))
    start = time.perf_counter()
    reader = decord.VideoReader(video)
    rate = reader.get_avg_fps()
    middles = (np.arange(frames) + 0.5) * seconds / frames
    firsts = np.arange(0, 60 * minutes - seconds + 1e-6, stride)
    found = [embed(reader, ((first + middles) * rate + 1e-3).astype(int)) for first in firsts]
    print(time.perf_counter() - start)
    np.save(out, np.stack(found))


if __name__ == "__main__":
    main()
