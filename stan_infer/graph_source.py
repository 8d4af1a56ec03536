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
from stan_infer.onnx_sizes import (
    Inputs,
    check_constants,
    check_need,
    check_operations,
    check_weights,
)
from stan_infer.stored_zip import open_regular

_LARGE = 2**26  # bytes of a file that is looked through on the disk first


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
        path = artefact.file(graph.file)
        if path.stat().st_size > _LARGE:
            _checked(path, path, external, artefact.config, graph.role)  # before it takes memory
        data = artefact.read(graph.file)
        form = _checked(data, path, external, artefact.config, graph.role)
        yield GraphSource(data, form, artefact.config)
        return
    with artefact.held(graph.file, *graph.external_data) as (path, *_):
        form = _checked(path, path, external, artefact.config, graph.role)
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
    try:
        file, size = open_regular(path)
        with file:
            if size > _LARGE:
                _checked(path, path, external, config, role)
            data = file.read(size)
    except InputError as e:
        raise e if path.name in str(e) else InputError(f"{path} cannot be read: {e}") from e
    except OSError as e:
        raise InputError(f"{path} cannot be read as an ONNX model: {e.strerror or e}") from e
    form = _checked(data, path, external, config, role)
    return GraphSource(path if form.external else data, form, config)


def _checked(
    source: bytes | Path,
    path: Path,
    external: Collection[str],
    config: StanConfig | None,
    role: str,
) -> GraphForm:
    form = read_graph(source, path.name)
    check_external(form, external)
    check_operations(form)
    check_constants(form)
    if config is not None:
        check_weights(form, config, role)
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
