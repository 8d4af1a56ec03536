"""python -m benchmarks.embed_loop FOLDER THREADS PASSES VIDEO...: as embed_loop.cpp, in Python.

Prints the seconds of each pass over the videos, then the embedding of each video.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from stan_infer.engines.open import open_session


def main() -> None:
    """Embed every video, as often as asked."""
    folder, threads, passes, *videos = sys.argv[1:]
    with open_session(folder, "ort", threads=int(threads)) as session:
        seconds = []
        for _ in range(int(passes)):
            start = time.perf_counter()
            found = [session.embed_video(session.read_clip(path)[None])[0] for path in videos]
            seconds.append(time.perf_counter() - start)
    for row in (seconds, *found):
        print(*np.asarray(row).tolist())


if __name__ == "__main__":
    main()
