"""Embed videos that a torch DataLoader reads: python data_loader.py CHECKPOINT FOLDER

Installed: extra cpu. Without a DataLoader of your own, si.embed_videos does the same."""

import signal
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

import stan_infer as si


class Videos(Dataset):
    """Clips uint8 [T, S, S, 3] as the model wants them; None for a video that cannot be read."""

    def __init__(self, folder: str, config: si.StanConfig) -> None:
        self.paths, self.config = sorted(Path(folder).rglob("*.mp4")), config

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[str, torch.Tensor | None]:
        try:  # of frames that were decoded before: session.prepare(frames)
            clip = si.read_clip(self.paths[i], config=self.config)
        except si.InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return self.paths[i].name, None
        return self.paths[i].name, torch.from_numpy(clip)


def embed(checkpoint: str, folder: str, *, batch: int = 4, workers: int = 2) -> dict:
    """Features by the name of the video: float32 tensors [E] on the session's device."""
    found = {}
    with si.open_session(checkpoint) as session:
        dataset = Videos(folder, session.config)
        for rows in DataLoader(dataset, batch, num_workers=workers, collate_fn=list):
            if good := [(name, clip) for name, clip in rows if clip is not None]:
                names, clips = zip(*good, strict=True)
                found |= zip(names, session.embed_video(clips, as_tensor=True), strict=True)
    return found


if __name__ == "__main__":
    vectors = embed(*sys.argv[1:])
    signal.signal(getattr(signal, "SIGPIPE", signal.SIGTERM), signal.SIG_DFL)  # ends with | head
    for name, vector in vectors.items():
        print(name, tuple(vector.shape), f"length {vector.norm():.2f}")
