"""The formats of `stan-infer export`: which options shape each, and what writes it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stan_infer.artefacts.folder import ENGINES_FOLDER, read_artefact, why_keep
from stan_infer.errors import InputError, check_word
from stan_infer.export.export_model import FORMATS as MODEL_FORMATS
from stan_infer.export.export_model import export_model
from stan_infer.export.to_triton_server import BACKENDS, why_keep_repository, write_repository
from stan_infer.export.to_triton_server import FORMAT as SERVED
from stan_infer.system.atomic import check_folder
from stan_infer.system.temporary import temporary_folder
from stan_infer.tensorrt_plans.build import build_plans
from stan_infer.tensorrt_plans.options import PlanOptions
from stan_infer.tensorrt_plans.plan_file import Plan, read_plan

if TYPE_CHECKING:
    from stan_infer.network.model import Stan

# Groups of options: of graphs, of plans, of both (batch and frames), of the server.
GRAPHS, PLANS, SIZES, BACKEND = "graphs", "plans", "sizes", "backend"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is exported.

    source: a checkpoint or an exported folder. sources: files that the result may not replace.
    load, graphs: of a checkpoint the model, and fields of ExportOptions, when they are needed.
    progress, on_plan: see export_model.
    """

    source: str
    sources: list[Path]
    out: Path | None
    load: Callable[[], Stan]
    graphs: Callable[[], Mapping[str, Any]]
    plans: PlanOptions
    progress: Callable[[str], None]
    on_plan: Callable[[str, float], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What an export wrote: a folder's manifest and plans, or the models of a server."""

    manifest: Mapping[str, Any] | None = None
    plans: list[Plan] = dataclasses.field(default_factory=list)
    models: list[str] | None = None


class Format(NamedTuple):
    """One format, written from a checkpoint or from an exported folder, and the options of each."""

    of_checkpoint: frozenset[str]
    of_folder: frozenset[str]
    from_checkpoint: Callable[[Request], Written]
    from_folder: Callable[[Request], Written]

    def options(self, source: str) -> frozenset[str]:
        """The groups of options that shape the export of this source."""
        return self.of_folder if os.path.isdir(source) else self.of_checkpoint

    def write(self, request: Request) -> Written:
        """Write it; raises what its writer raises."""
        is_folder = os.path.isdir(request.source)
        return (self.from_folder if is_folder else self.from_checkpoint)(request)


def _write_folder(name: str, request: Request) -> Written:
    out = _checked(request, why_keep)
    artefact = export_model(
        request.load,
        out,
        format=name,
        plan=request.plans,
        progress=request.progress,
        on_plan=request.on_plan,
        **request.graphs(),
    )
    plans = sorted((artefact.path / ENGINES_FOLDER).glob("*.plan"))
    return Written(manifest=artefact.manifest, plans=[read_plan(path) for path in plans])


def _add_plans(name: str, request: Request) -> Written:
    folder, engine = request.source, MODEL_FORMATS[name]
    if engine is None:
        raise InputError(
            f"{folder} is a folder; format onnx takes a checkpoint. Give the checkpoint, or "
            "--format tensorrt or tensorrt-rtx, which adds plans to the folder"
        )
    if request.out is not None and request.out.absolute() != Path(folder).absolute():
        raise InputError("plans are added to the folder itself: leave -o out, or copy the folder")
    return Written(plans=build_plans(folder, engine, request.plans, progress=request.on_plan))


def _serve(backend: str, request: Request) -> Written:
    """A server's repository: of an exported folder, or of one that is made for it and then goes."""
    out = _checked(request, why_keep_repository)
    if os.path.isdir(request.source):
        return Written(models=write_repository(read_artefact(request.source), out, backend=backend))
    with temporary_folder("the export that is served") as above:
        folder = dataclasses.replace(request, out=above / "folder")
        _write_folder(BACKENDS[backend], folder)
        artefact = read_artefact(above / "folder")
        return Written(models=write_repository(artefact, out, backend=backend))


def _checked(request: Request, why_keep: Callable[[Path], str | None]) -> Path:
    if request.out is None:
        raise InputError("give the folder to write: stan-infer export CHECKPOINT -o FOLDER")
    check_folder(request.out, why_keep, sources=request.sources)
    return request.out


def _model_format(name: str) -> Format:
    plans = {PLANS} if MODEL_FORMATS[name] else set()
    return Format(
        frozenset({GRAPHS, SIZES} | plans),
        frozenset({SIZES} | plans),
        partial(_write_folder, name),
        partial(_add_plans, name),
    )


def _served_format(backend: str) -> Format:
    made = _model_format(BACKENDS[backend]).of_checkpoint
    write = partial(_serve, backend)
    return Format(made | {BACKEND}, frozenset({BACKEND}), write, write)


def format_named(name: str, backend: str) -> Format:
    """The entry of a format; backend: of triton-server. InputError for an unknown word."""
    check_word("format", name, (*MODEL_FORMATS, SERVED))
    check_word("backend", backend, BACKENDS)
    return _served_format(backend) if name == SERVED else _model_format(name)
