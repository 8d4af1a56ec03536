"""Find the videos of a folder that fit a sentence: python search.py MODEL FOLDER "a dog runs"

The first search embeds the videos and keeps their vectors in FOLDER/vectors.npz; later ones take
less than a second, until a video or the model changes. Installed: extra runtime or cpu.
"""

import json
import sys
from pathlib import Path

import numpy as np

import stan_infer as si
from stan_infer.library.model_files import model_source
from stan_infer.video.find import list_videos


def search(
    session: si.Session, folder: str | Path, sentence: str, top: int = 10
) -> list[tuple[float, str]]:
    """The best videos: (score, path), best first."""
    vectors = Path(folder) / "vectors.npz"
    if not is_current(vectors, session):
        found = si.embed_videos(session, folder, vectors, say=lambda t: print(t, file=sys.stderr))
        print(found, file=sys.stderr)
    with np.load(vectors, allow_pickle=False) as stored:
        paths, embeddings = stored["paths"], stored["embeddings"]
    scores = session.score_embeddings([sentence], embeddings)[0]  # [n]
    best = np.argsort(-scores, kind="stable")[:top]
    return [(float(scores[i]), str(paths[i])) for i in best]


def is_current(vectors: Path, session: si.Session) -> bool:
    """Whether this model made them, after the last video came or went."""
    if not vectors.exists():
        return False
    with np.load(vectors, allow_pickle=False) as stored:
        made_by = json.loads(str(stored["info"]))["source"].get("model")
        gone = not all(Path(p).exists() for p in stored["paths"])
    newest = max(p.stat().st_ctime for p in list_videos([vectors.parent]))
    model = model_source(str(session.source), session.config.to_dict())["model"]
    return made_by == model and not gone and newest < vectors.stat().st_ctime


if __name__ == "__main__":
    model, folder, sentence = sys.argv[1:]
    with si.open_session(model) as opened:
        for score, path in search(opened, folder, sentence):
            print(f"{score:.3f}  {path}")
