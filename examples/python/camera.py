"""Say what a camera sees, again and again: python camera.py MODEL SOURCE TEXT TEXT ...

MODEL is a checkpoint or an exported folder, SOURCE a video file or a camera (/dev/video0).
Installed: extra runtime for a folder, extra cpu for a checkpoint."""

import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator

import av
import numpy as np

import stan_infer as si

SECONDS, EVERY = 4.0, 1.0  # how long the model looks back, and between two answers


def watch(
    frames: Iterable[tuple[float, np.ndarray]], session: si.Session, texts: list[str]
) -> Iterator[tuple[float, str, float]]:
    """Yield (seconds, best text, score); frames: (seconds, uint8 [H, W, 3] RGB), oldest first."""
    last: deque[tuple[float, np.ndarray]] = deque(maxlen=1000)  # memory stays bounded
    due = 0.0
    for now, frame in frames:  # with times, as a camera's rate is uneven
        last.append((now, frame))
        while last[0][0] < now - SECONDS:
            last.popleft()
        if now < due:
            continue
        due = now + EVERY
        times, images = zip(*last, strict=True)
        scores = session.score(texts, session.prepare(images, timestamps=times)[None])[:, 0]
        yield now, texts[scores.argmax()], float(scores.max())


def decoded(source: str) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a file or a camera. With OpenCV: prepare(..., order="bgr")."""
    with av.open(source, format="v4l2" if source.startswith("/dev/") else None) as container:
        for frame in container.decode(video=0):
            yield float(frame.time or 0), frame.to_ndarray(format="rgb24")


if __name__ == "__main__":
    model, source, *words = sys.argv[1:]
    signal.signal(getattr(signal, "SIGPIPE", signal.SIGTERM), signal.SIG_DFL)  # ends with | head
    with si.open_session(model) as opened:
        for now, text, score in watch(decoded(source), opened, words):
            print(f"{now:7.2f} s  {text}  {score:.2f}", flush=True)
