"""The five best classes of every video as CSV: python top5_csv.py MODEL LABELS FOLDER > top5.csv

LABELS has one class per line. Installed: extra runtime for a folder, extra cpu for a
checkpoint.
"""

import csv
import os
import sys
from pathlib import Path
from typing import TextIO

import numpy as np

import stan_infer as si


def top5(session: si.Session, labels: list[str], folder: str, out: TextIO) -> dict[str, str]:
    """Write video, rank, class, score, probability; return the videos that could not be read."""
    found = si.embed_videos(session, folder)
    scores = session.score_embeddings(labels, found.embeddings).T.astype(np.float64)  # [n, Q]
    logits = scores / session.config.temperature
    odds = np.exp(logits - logits.max(1, keepdims=True))
    shares = odds / odds.sum(1, keepdims=True)
    writer = csv.writer(out)
    writer.writerow(["video", "rank", "class", "score", "probability"])
    for path, row, share in zip(found.paths, scores, shares, strict=True):
        for rank, i in enumerate(np.argsort(-row, kind="stable")[:5], 1):
            writer.writerow([path, rank, labels[i], f"{row[i]:.4f}", f"{share[i]:.4f}"])
    return found.failed


if __name__ == "__main__":
    model, file, videos = sys.argv[1:]
    names = [line.strip() for line in Path(file).read_text().splitlines() if line.strip()]
    try:
        with si.open_session(model) as opened:
            failed = top5(opened, names, videos, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # with | head
        os._exit(141)
    for reason in failed.values():
        print(f"error: {reason}", file=sys.stderr)
    sys.exit(2 if failed else 0)
