"""The classes of an exported folder: their embeddings, and the graph's head that scores them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.export.score_graph import add_length, add_mug_score
from stan_infer.scores import head_scores
from stan_infer.text.templates import Templates
from stan_infer.text.tokenizer import tokenize

if TYPE_CHECKING:
    from stan_infer.network.model import Stan

Classes = dict[str, np.ndarray]


def embed_classes(model: Stan, labels: Sequence[str], templates: Templates) -> Classes:
    """The arrays that a class head is made from, as labels.npz has them.

    Mean head: "embeddings" float32 [n, E], normalised, of several templates the average. Mug heads:
    "token_embeds" float32 [n, L, E] and "input_ids" int32 [n, L].
    """
    import torch

    ids = tokenize(templates.fill(labels), model.config.context_length)
    parts = torch.from_numpy(ids).split(256)
    with torch.inference_mode():
        if model.config.is_mug:
            tokens = torch.cat([model.encode_text_tokens(p).float() for p in parts]).numpy()
            return {"token_embeds": tokens, "input_ids": ids.astype(np.int32)}
        vectors = torch.cat([model.encode_text(p).float() for p in parts]).numpy()
    vectors = templates.average(vectors)
    return {"embeddings": vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)}


def class_scores(
    config: StanConfig, classes: Classes, video_embeds: np.ndarray, frame_embeds: np.ndarray
) -> np.ndarray:
    """Class scores [B, n], from video_embeds [B, E], or with a Mug head frame_embeds [B, T, E]."""
    if not config.is_mug:
        return head_scores(config.head, classes["embeddings"], None, video_embeds).T
    tokens, mask = classes["token_embeds"], classes["input_ids"] != 0
    return head_scores(config.head, tokens, mask, frame_embeds, tau=config.mug_tau).T


def add_class_head(
    graph: GraphWriter,
    config: StanConfig,
    classes: Classes,
    mean: str,
    frames: str,
    batch: int | str,
) -> None:
    """Add the outputs "scores" and "probabilities" [B, n] to a video graph.

    mean, frames: names of the values that hold video_embeds and frame_embeds.
    """
    n = len(next(iter(classes.values())))
    with graph.scope("classes"):
        if config.is_mug:
            tokens = graph.weight("token_embeds", classes["token_embeds"])
            ids = graph.weight("input_ids", classes["input_ids"])
            both = add_mug_score(graph, tokens, ids, frames, mode=config.head, tau=config.mug_tau)
            scores = graph.node("Transpose", [both], perm=[1, 0])
        else:
            unit = graph.node("Div", [mean, add_length(graph, mean)])
            weight = graph.weight("embeddings", classes["embeddings"].T)
            scores = graph.node("MatMul", [unit, weight])
        scale = graph.constant(1 / config.temperature, np.float32)
        softmax = graph.node("Softmax", [graph.node("Mul", [scores, scale])], axis=-1)
    graph.output(scores, "scores", [batch, n])
    graph.output(softmax, "probabilities", [batch, n])
