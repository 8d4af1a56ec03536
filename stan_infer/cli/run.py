"""The command `stan-infer run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stan_infer.cli.options import (
    AutoRebuild,
    Calibration,
    CheckpointOrFolder,
    Decoder,
    Device,
    Engine,
    Json,
    Labels,
    Locked,
    Provider,
    Settings,
    SplitWords,
    Timeout,
    Weights,
    open_for,
    read_texts,
)


def run(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    videos: Annotated[list[Path], typer.Argument(help="Videos, or folders of videos.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    labels: Labels = None,
    split_words: SplitWords = False,
    top: Annotated[int, typer.Option(min=1, help="Texts shown per video.")] = 5,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    decoder: Decoder = "auto",
    timeout: Timeout = 60.0,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Score videos against texts: which text fits each video best."""
    from stan_infer.cli.report import print_json, print_table, say
    from stan_infer.engines.inputs import token_ids
    from stan_infer.engines.session import score_features
    from stan_infer.library.embed import EmbedOptions, embed_videos
    from stan_infer.text.tokenizer import cut_texts
    from stan_infer.video.find import list_videos
    from stan_infer.video.spec import ClipSpec

    texts = read_texts(text, labels, split_words)
    paths = list_videos(videos)
    session = open_for(context)
    ids = token_ids(session.config, texts, session.vocabulary)
    features = session.embed_text(ids)
    cut = cut_texts(texts, session.config.context_length, vocabulary=session.vocabulary)
    failed, shown = 0, []
    for reading in embed_videos(
        session,
        paths,
        EmbedOptions(timeout_s=timeout),
        spec=ClipSpec.of(session.config, decoder=decoder),
    ):
        if reading.clip is None or reading.features is None:
            failed += 1
            say(f"error: {reading.error}")
            if json:
                print_json("run", {"video": str(reading.path), "error": reading.error})
            continue
        scores = score_features(session.config, features, ids, reading.features[None])[:, 0]
        rows = _rows(reading, texts, scores, session.config.temperature, cut)
        if json:
            record = {
                "video": str(reading.path),
                "decoder": reading.clip.decoder,
                "total_frames": reading.clip.total_frames,
                "frame_indices": reading.clip.indices,
                "session": session.describe(),
                "scores": [{k: v for k, v in r.items() if k != "video"} for r in rows],
            }
            print_json("run", record)
        else:
            shown += rows[:top]
    print_table(shown, ["video", "text", "score", "probability"])
    if failed:
        say(f"{failed} of {len(paths)} videos could not be read")
        raise typer.Exit(2)


def _rows(
    reading: Any, texts: list[str], scores: Any, temperature: float, cut: list[int]
) -> list[dict[str, Any]]:
    import numpy as np

    from stan_infer.scores import softmax

    probabilities = softmax(scores.astype(np.float64) / temperature, 0)
    rows = [
        {
            "video": str(reading.path),
            "text": t,
            "score": float(s),
            "probability": float(p),
            "cut": i in cut,
        }
        for i, (t, s, p) in enumerate(zip(texts, scores, probabilities, strict=True))
    ]
    return sorted(rows, key=lambda r: -r["score"])
