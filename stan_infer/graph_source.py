"""A graph as a runtime gets it: read once, its bytes checked, its operations and sizes too."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from stan_infer.artefact import Artefact, Graph, external_names
from stan_infer.config import StanConfig
from stan_infer.errors import CheckError, InputError
from stan_infer.onnx_file import GraphForm, check_external, read_graph
from stan_infer.onnx_sizes import Inputs, check_need, check_operations


@dataclass(frozen=True)
class GraphSource:
    """What is given to a runtime. data: the file's bytes, those that were checked; None for a graph
    with external data, which a runtime reads from `path` itself.
    """

    path: Path
    data: bytes | None
    form: GraphForm
    config: StanConfig | None = None  # None: a bare graph
    _seen: tuple[tuple[str, tuple[int, ...]], ...] = ()  # its files, as they were when checked

    @property
    def content(self) -> bytes | Path:
        """The bytes, or the path of a graph with external data."""
        return self.path if self.data is None else self.data

    def check_sizes(self, inputs: Inputs) -> None:
        """Refuse a graph that takes far more for these inputs than the model needs: InputError."""
        check_need(self.form, self.config, inputs)

    def check_unchanged(self) -> None:
        """After something read it from `path`: CheckError where a file is another by then."""
        for name, state in self._seen:
            if _state(self.path.with_name(name)) != state:
                raise CheckError(
                    f"{self.path.with_name(name)} was changed while it was being opened: nothing "
                    "of it is used; try again when nobody writes there"
                )


def read_source(artefact: Artefact, graph: Graph) -> GraphSource:
    """Read a graph of a folder; its hash is that of the manifest.

    Raises InputError for a graph that is malformed, has operations that the exporters do not write
    or reads files that the manifest does not list; CheckError for another hash.
    """
    external = external_names(artefact, graph)
    seen = _states(artefact.path / graph.file, external)
    data = artefact.read(graph.file)
    path = artefact.path / graph.file
    form = _checked(data, path, external)
    if not form.external:
        return GraphSource(path, data, form, artefact.config, seen)
    for name in form.external:
        artefact.check(f"{graph.file.rpartition('/')[0]}/{name}".lstrip("/"))
    return GraphSource(path, None, form, artefact.config, seen)


def read_bare(
    path: Path, external: Sequence[str] = (), config: StanConfig | None = None
) -> GraphSource:
    """Read a graph that no manifest vouches for; external: files beside it that it may read.

    Raises InputError as read_source does.
    """
    seen = _states(path, external)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError(f"{path} cannot be read as an ONNX model: {e.strerror or e}") from e
    form = _checked(data, path, external)
    if not form.external:
        return GraphSource(path, data, form, config, seen)
    return GraphSource(path, None, form, config, seen)


def _checked(data: bytes, path: Path, external: Collection[str]) -> GraphForm:
    form = read_graph(data, path.name)
    check_external(form, external)
    check_operations(form)
    for name in form.external:
        state, asked = _state(path.with_name(name)), form.external_bytes(name)
        if not state or asked > state[2]:
            raise InputError(
                f"{form.name} reads {asked} bytes of weights from {name}, which has "
                f"{state[2] if state else 'none'}: incomplete copy? export the checkpoint again"
            )
    return form


def _states(path: Path, external: Sequence[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, _state(path.with_name(name))) for name in (path.name, *external))


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or another takes its place."""
    try:
        s = os.stat(path)
    except OSError:
        return ()
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns
