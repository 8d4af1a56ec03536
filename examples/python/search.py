"""Find the videos of a folder that fit a sentence: python search.py MODEL FOLDER "a dog runs"

The first search embeds the videos and keeps their vectors in FOLDER/vectors.npz; later ones take
less than a second. Installed: extra runtime for a folder, cpu for a checkpoint.
"""

import sys
from pathlib import Path

import numpy as np

import stan_infer as si


def search(
    session: si.Session, folder: str | Path, sentence: str, top: int = 10
) -> list[tuple[float, str]]:
    """The best videos: (score, path), best first."""
    vectors = Path(folder) / "vectors.npz"
    if not vectors.exists():
        found = si.embed_videos(session, folder, vectors, say=lambda t: print(t, file=sys.stderr))
        print(found, file=sys.stderr)
    with np.load(vectors, allow_pickle=False) as stored:
        paths, embeddings = stored["paths"], stored["embeddings"]
    scores = session.score_embeddings([sentence], embeddings)[0]  # [n]
    best = np.argsort(-scores, kind="stable")[:top]
    return [(float(scores[i]), str(paths[i])) for i in best]


if __name__ == "__main__":
    model, folder, sentence = sys.argv[1:]
    with si.open_session(model) as opened:
        for score, path in search(opened, folder, sentence):
            print(f"{score:.3f}  {path}")
