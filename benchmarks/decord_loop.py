"""python -m benchmarks.decord_loop FOLDER CLIPS OUT.npz: the loop that users write by hand.

decord and ONNX Runtime in one process, one video after the other, without any of this package: what
`stan-infer embed` is compared with. decord runs with its own default of threads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import cv2
import decord
import numpy as np
import onnxruntime

Embed: TypeAlias = Callable[[decord.VideoReader, np.ndarray], np.ndarray]


def opened_frames(model: Path) -> tuple[int, Embed]:
    """Open an exported folder: T, and what embeds frames of a video by number, float32 [E]."""
    config = json.loads((model / "manifest.json").read_text())["model"]
    short_side, crop = config["short_side"], config["image_size"]
    session = onnxruntime.InferenceSession(model / "video.onnx", providers=["CPUExecutionProvider"])

    def embed(reader: decord.VideoReader, numbers: np.ndarray) -> np.ndarray:
        images = []
        for image in reader.get_batch(numbers).asnumpy():
            height, width = image.shape[:2]
            scale = short_side / min(height, width)
            size = (int(width * scale + 0.5), int(height * scale + 0.5))
            image = cv2.resize(image, size)
            top, left = (size[1] - crop) // 2, (size[0] - crop) // 2
            images.append(image[top : top + crop, left : left + crop])
        feed = {session.get_inputs()[0].name: np.stack(images)[None]}
        return session.run(["video_embeds"], feed)[0][0]

    return config["frames"], embed


def opened(model: Path) -> Callable[[Path], np.ndarray]:
    """Open an exported folder; return the function that embeds a video with it, float32 [E]."""
    frames, embed = opened_frames(model)

    def embed_video(path: Path) -> np.ndarray:
        reader = decord.VideoReader(str(path))
        segment = (len(reader) - 1) / frames
        numbers = np.round(segment * np.arange(frames)).astype(int) + int(segment / 2)
        return embed(reader, numbers)

    return embed_video


def main() -> None:
    """Embed every video of a folder with an exported model; write paths and embeddings."""
    model, clips, out = map(Path, sys.argv[1:])
    embed = opened(model)
    paths = sorted(clips.iterdir())
    np.savez(out, paths=[str(p) for p in paths], embeddings=np.stack([*map(embed, paths)]))


if __name__ == "__main__":
    main()
