"""The formats of `stan-infer export`: which options each one uses, and what writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.artefacts.folder import ENGINES_FOLDER, read_artefact, why_keep
from stan_infer.checkpoints.weights_folder import is_exported
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
    """One export.

    backend: of format triton-server. given: the checkpoint or exported folder to export. protected:
    files that the result may not replace. load, graphs: functions that return the checkpoint's
    model, and fields of ExportOptions; called only for a checkpoint. progress, on_plan: see
    export_model.
    """

    format: str
    backend: str
    given: str
    protected: list[Path]
    out: Path | None
    load: Callable[[], Stan]
    graphs: Callable[[], Mapping[str, Any]]
    plans: PlanOptions
    progress: Callable[[str], None]
    on_plan: Callable[[str, float], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What an export wrote: a folder's manifest and plans, or the models of a repository."""

    manifest: Mapping[str, Any] | None = None
    plans: list[Plan] = dataclasses.field(default_factory=list)
    models: list[str] | None = None


def used_options(format: str, backend: str, given: str) -> set[str]:
    """The groups of options that the export of `given`, a checkpoint or a folder, uses.

    Raises InputError for an unknown format or backend.
    """
    check_word("format", format, (*MODEL_FORMATS, SERVED))
    check_word("backend", backend, BACKENDS)
    used, is_folder = {SIZES}, is_exported(given)
    if format == SERVED:
        if is_folder:
            return {BACKEND}
        used.add(BACKEND)
        format = BACKENDS[backend]
    if MODEL_FORMATS[format]:
        used.add(PLANS)
    if not is_folder:
        used.add(GRAPHS)
    return used


def write(request: Request) -> Written:
    """Write the export; raises as the writer of its format does."""
    if request.format == SERVED:
        return _write_repository(request)
    return (_add_plans if is_exported(request.given) else _write_folder)(request)


def _write_folder(request: Request) -> Written:
    artefact = export_model(
        request.load,
        _checked_out(request, why_keep),
        format=request.format,
        plan=request.plans,
        progress=request.progress,
        on_plan=request.on_plan,
        **request.graphs(),
    )
    plans = sorted((artefact.path / ENGINES_FOLDER).glob("*.plan"))
    return Written(manifest=artefact.manifest, plans=[read_plan(path) for path in plans])


def _add_plans(request: Request) -> Written:
    folder, engine = request.given, MODEL_FORMATS[request.format]
    if engine is None:
        raise InputError(
            f"{folder} is a folder; format onnx takes a checkpoint. Give the checkpoint, or "
            "--format tensorrt or tensorrt-rtx, which adds plans to the folder"
        )
    if request.out is not None and request.out.absolute() != Path(folder).absolute():
        raise InputError("plans are added to the folder itself: leave -o out, or copy the folder")
    return Written(plans=build_plans(folder, engine, request.plans, progress=request.on_plan))


def _write_repository(request: Request) -> Written:
    """Write a repository from an exported folder; from a checkpoint, export a temporary one."""
    out, backend = _checked_out(request, why_keep_repository), request.backend
    if is_exported(request.given):
        return Written(models=write_repository(read_artefact(request.given), out, backend=backend))
    with temporary_folder("the export that is served") as above:
        folder = above / "folder"
        _write_folder(dataclasses.replace(request, format=BACKENDS[backend], out=folder))
        return Written(models=write_repository(read_artefact(folder), out, backend=backend))


def _checked_out(request: Request, why_keep: Callable[[Path], str | None]) -> Path:
    if request.out is None:
        raise InputError("give the folder to write: stan-infer export CHECKPOINT -o FOLDER")
    check_folder(request.out, why_keep, sources=request.protected)
    return request.out
