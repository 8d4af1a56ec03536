"""Graphs that are checked before a runtime opens them: hash, operations, weights, sizes.

A file is held open from the comparison of its hash until the runtime has read it. Large weights are
never read into memory here: a graph may have hundreds of megabytes of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
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
class CheckedGraph:
    """A graph that passed the checks: the path that a runtime opens, and the graph's content.

    config: of the model; None for a bare graph.
    """

    path: Path
    form: GraphForm
    config: StanConfig | None = None
    _passed: set[tuple[object, ...]] = field(default_factory=set)  # sizes that were checked

    def check_sizes(self, inputs: Inputs) -> None:
        """Raise InputError if inputs of these sizes take far more than the model needs."""
        key = tuple(tuple(sizes) for _, sizes in inputs.values())
        if key not in self._passed:
            check_need(self.form, self.config, inputs)
            self._passed.add(key)


@contextmanager
def checked_graph(artefact: Artefact, graph: Graph) -> Iterator[CheckedGraph]:
    """Check a graph of a folder, and hold its file open until a runtime has read it.

    Raises InputError for a graph that is malformed, has operations that the exporters do not write
    or reads files that the manifest does not list; CheckError for another hash than the manifest's,
    and at the end for a file that was changed meanwhile.
    """
    with artefact.held(graph.file, *graph.external_data) as (path, *_):
        beside = artefact.file(graph.file)
        names = [Path(name).name for name in graph.external_data]
        form = _check(path, beside, names, artefact.config, graph.role)
        yield CheckedGraph(path, form, artefact.config)


def checked_bare_graph(
    path: Path,
    external: Collection[str] = (),
    config: StanConfig | None = None,
    role: str = "",
) -> CheckedGraph:
    """Check a graph for which there is no hash.

    external: names of the files beside it that it may read. config, role: what the graph is said to
    be, where that is known. Raises InputError as checked_graph does, and for a path that is not a
    regular file.
    """
    return CheckedGraph(path, _check(path, path, external, config, role), config)


def _check(
    path: Path, named: Path, external: Collection[str], config: StanConfig | None, role: str
) -> GraphForm:
    """Check the file at `path`, whose own place is `named`; its weights lie beside that."""
    form = read_graph(path, named.name)
    check_external(form, external)
    check_operations(form)
    check_constants(form)
    if config is not None:
        check_weights(form, config, role)
    for name in form.external:
        beside, asked = named.parent / name, form.external_bytes(name)
        size = beside.stat().st_size if beside.is_file() else None
        if size is None or asked > size:
            raise InputError(
                f"{named.name} reads {asked} bytes of weights from {name}, which "
                f"{'is missing' if size is None else f'has {size}'}: incomplete copy? export the "
                "checkpoint again"
            )
    return form
