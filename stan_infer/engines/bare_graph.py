"""A graph without a known hash: its operations and sizes are checked before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.checked_graph import CheckedGraph, checked_bare_graph
from stan_infer.config import StanConfig
from stan_infer.engines.graph import OpenGraph, Signature
from stan_infer.engines.open import open_graph


class BareGraph(OpenGraph):
    """A graph that refuses, before it runs, inputs for which it would take far too much."""

    def __init__(self, source: CheckedGraph, graph: OpenGraph) -> None:
        """Take what was checked and what a runtime made of it."""
        self._source, self._graph = source, graph

    def signature(self) -> Signature:
        return self._graph.signature()

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        self._source.check_sizes({n: (v.dtype.name, v.shape) for n, v in feeds.items()})
        return self._graph.run(feeds, outputs)

    def describe(self) -> dict[str, Any]:
        return self._graph.describe()


def open_bare(
    path: Path,
    engine: str,
    external: Sequence[str] = (),
    config: StanConfig | None = None,
    role: str = "",
    **options: Any,
) -> BareGraph:
    """Open an ONNX file.

    external: the files beside it that it may read. config, role: what it is said to be, where
    something says so. options: see open_graph. Raises InputError where the file or the runtime
    refuses, MissingError without the runtime.
    """
    source = checked_bare_graph(path, external, config, role)
    return BareGraph(source, open_graph(source.path, engine, name=path.name, **options))
