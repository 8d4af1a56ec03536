"""The stage "labels": a folder's stored class features and scores against a text tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stan_infer.verification.side import Side
from stan_infer.verification.stage import Stage


def compare_labels(
    stage: Stage,
    pair: Sequence[Side],
    clips: Mapping[str, np.ndarray],
    tensor: Callable[[np.ndarray, Side], np.ndarray],
    say: Callable[[str], None],
) -> None:
    """Compare with the first side that has a text tower.

    pair: A and B, or one alone. clips: by name; class scores are compared on the first. tensor: a
    function from pixels [B, T, S, S, 3] and a side to the input of that side's graph.
    """
    by = next((s for s in pair if not (s.lacks("ids") or s.lacks("text"))), None)
    stage.absent = "not compared: no folder has labels"
    for letter, side in zip("AB", pair, strict=False):
        with stage.catch(f"{letter}'s labels"):
            found = side.labels()
            if found is None or by is None or by.config is None:
                continue
            say("labels")
            stage.absent, stage.reference = "", f"{'AB'[pair.index(by)]}'s text tower"
            names, templates, baked = found
            ids = by.ids(templates.fill(names))
            text = by.text(ids)
            if len(templates.sentences) > 1:
                text["text_embeds"] = templates.average(text["text_embeds"])
                ids = templates.first(ids)
            if "token_embeds" in baked:
                held = text["token_embeds"], baked["token_embeds"]
            else:
                rows = text["text_embeds"]
                held = rows / np.linalg.norm(rows, axis=-1, keepdims=True), baked["embeddings"]
            stage.compare(f"{letter}'s {len(ids)} labels", held)
            if not clips:
                continue
            clip = next(iter(clips.values()))[None]
            outputs = side.class_outputs(tensor(clip, side))
            if outputs:
                # Of its own features, which the stage of the video tower compares.
                logits = by.score(text, ids, side.video(tensor(clip, side))).T
                scores = logits * by.config.temperature
                stage.compare(f"{letter}'s class scores", (scores, outputs["scores"]))
                with np.errstate(divide="ignore"):
                    got = np.log(outputs["probabilities"].astype(np.float64))
                want = scores - scores.max(-1, keepdims=True)
                got = (got - got.max(-1, keepdims=True)) * by.config.temperature
                # Probabilities below e^-80 of the largest underflow and are not compared.
                kept = np.where(got > -80 * by.config.temperature, got, want)
                stage.compare(f"{letter}'s probabilities", (want, kept), np.abs(scores).max())
