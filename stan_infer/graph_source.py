"""A graph as a runtime gets it: read once, its bytes checked, its operations and sizes too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stan_infer.artefact import Artefact, Graph, external_names
from stan_infer.config import StanConfig
from stan_infer.errors import InputError
from stan_infer.onnx_file import GraphForm, check_external, read_graph
from stan_infer.onnx_sizes import Inputs, check_need, check_operations


@dataclass(frozen=True)
class GraphSource:
    """What is given to a runtime.

    content: the file's bytes, those that were checked; the path of a graph with external data,
    which a runtime reads itself. config: None for a bare graph.
    """

    content: bytes | Path
    form: GraphForm
    config: StanConfig | None = None

    def check_sizes(self, inputs: Inputs) -> None:
        """Refuse a graph that takes far more for these inputs than the model needs: InputError."""
        check_need(self.form, self.config, inputs)


@contextmanager
def graph_source(artefact: Artefact, graph: Graph) -> Iterator[GraphSource]:
    """Read a graph of a folder, whose hash is the manifest's; what has external data is held.

    Raises InputError for a graph that is malformed, has operations that the exporters do not write
    or reads files that the manifest does not list; CheckError for another hash, or for external
    data that was changed before the end.
    """
    external = external_names(artefact, graph)
    if not external:
        data = artefact.read(graph.file)
        path = artefact.file(graph.file)
        yield GraphSource(data, _checked(data, path, external), artefact.config)
        return
    with artefact.held(graph.file, *graph.external_data) as (path, *_):
        form = _checked(path.read_bytes(), path, external)
        yield GraphSource(path, form, artefact.config)


def bare_source(
    path: Path, external: Sequence[str] = (), config: StanConfig | None = None
) -> GraphSource:
    """Read a graph that no manifest vouches for; external: files beside it that it may read.

    Raises InputError as graph_source does.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError(f"{path} cannot be read as an ONNX model: {e.strerror or e}") from e
    form = _checked(data, path, external)
    return GraphSource(path if form.external else data, form, config)


def _checked(data: bytes, path: Path, external: Collection[str]) -> GraphForm:
    form = read_graph(data, path.name)
    check_external(form, external)
    check_operations(form)
    for name in form.external:
        beside, asked = path.with_name(name), form.external_bytes(name)
        size = beside.stat().st_size if beside.is_file() else None
        if size is None or asked > size:
            raise InputError(
                f"{form.name} reads {asked} bytes of weights from {name}, which "
                f"{'is missing' if size is None else f'has {size}'}: incomplete copy? export the "
                "checkpoint again"
            )
    return form
