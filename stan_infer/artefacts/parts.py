"""The video tower in two graphs, for windows that slide: their roles, and what passes between."""

from __future__ import annotations

from stan_infer.config import StanConfig

PARTS = ("trunk", "branch")
CHUNK = 8  # frames that pass the trunk at once, where several are given


def row_names(config: StanConfig) -> list[str]:
    """Of the K outputs of a trunk graph, which are the inputs of a branch graph."""
    return [f"rows_{k}" for k in range(config.branch_layers)]
