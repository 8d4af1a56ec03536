"""A graph as a runtime gets it: its hash, its operations and its sizes checked before.

The file is held open from its hash until the runtime has read it, and its large weights are never
in memory here: a graph comes to hundreds of megabytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.artefacts.onnx_file import GraphForm, check_external, read_graph
from stan_infer.artefacts.onnx_sizes import (
    Inputs,
    check_constants,
    check_need,
    check_operations,
    check_weights,
)
from stan_infer.config import StanConfig
from stan_infer.errors import InputError


@dataclass(frozen=True)
class GraphSource:
    """What is given to a runtime: the path by which it opens the file, and what stands in it.

    config: None for a bare graph.
    """

    path: Path
    form: GraphForm
    config: StanConfig | None = None
    _bearable: set[tuple[object, ...]] = field(default_factory=set)  # sizes that were found so

    def check_sizes(self, inputs: Inputs) -> None:
        """Refuse a graph that takes far more for these inputs than the model needs: InputError."""
        key = tuple(tuple(sizes) for _, sizes in inputs.values())
        if key not in self._bearable:
            check_need(self.form, self.config, inputs)
            self._bearable.add(key)


@contextmanager
def graph_source(artefact: Artefact, graph: Graph) -> Iterator[GraphSource]:
    """Hold a graph of a folder, whose hash is the manifest's, until a runtime has read it.

    Raises InputError for a graph that is malformed, has operations that the exporters do not write
    or reads files that the manifest does not list; CheckError for another hash, and at the end for
    a file that was changed meanwhile.
    """
    with artefact.held(graph.file, *graph.external_data) as (path, *_):
        beside = artefact.file(graph.file).parent
        names = [Path(name).name for name in graph.external_data]
        form = _checked(path, Path(graph.file).name, beside, names, artefact.config, graph.role)
        yield GraphSource(path, form, artefact.config)


def bare_source(
    path: Path,
    external: Sequence[str] = (),
    config: StanConfig | None = None,
    role: str = "",
) -> GraphSource:
    """Read a graph whose hash is not compared; external: files beside it that it may read.

    config, role: what it is said to be, where something says so. Raises InputError as graph_source
    does, and for what is no regular file.
    """
    return GraphSource(path, _checked(path, path.name, path.parent, external, config, role), config)


def _checked(
    path: Path,
    name: str,
    folder: Path,
    external: Collection[str],
    config: StanConfig | None,
    role: str,
) -> GraphForm:
    form = read_graph(path, name)
    check_external(form, external)
    check_operations(form)
    check_constants(form)
    if config is not None:
        check_weights(form, config, role)
    for other in form.external:
        beside, asked = folder / other, form.external_bytes(other)
        size = beside.stat().st_size if beside.is_file() else None
        if size is None or asked > size:
            raise InputError(
                f"{name} reads {asked} bytes of weights from {other}, which "
                f"{'is missing' if size is None else f'has {size}'}: incomplete copy? export the "
                "checkpoint again"
            )
    return form
