"""Open an ONNX file whose hash no manifest gives: its operations and sizes are checked first."""

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
    """A graph that refuses inputs for which it would take far more memory or work than a model."""

    def __init__(self, checked: CheckedGraph, graph: OpenGraph) -> None:
        """checked: the checked file; graph: the same file as a runtime has opened it."""
        self._checked, self._graph = checked, graph

    def signature(self) -> Signature:
        return self._graph.signature()

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        self._checked.check_sizes({n: (v.dtype.name, v.shape) for n, v in feeds.items()})
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

    external: names of the files beside it that it may read. config, role: of the model and the
    graph that it should be, where they are known. options: see open_graph. Raises InputError for a
    file that is refused by the checks or by the runtime, MissingError without the runtime.
    """
    checked = checked_bare_graph(path, external, config, role)
    return BareGraph(checked, open_graph(checked.path, engine, name=path.name, **options))
