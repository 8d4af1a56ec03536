"""A folder's ONNX graphs -> plans in its engines/, each beside a sidecar that says what it is."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stan_infer.artefacts.checked_graph import checked_graph
from stan_infer.artefacts.folder import (
    ENGINES_FOLDER,
    MANIFEST,
    Artefact,
    Graph,
    read_artefact,
    sha256,
)
from stan_infer.errors import CheckError, InputError, MissingError, StanError
from stan_infer.system.atomic import check_file
from stan_infer.system.child import Ended, python, run_child
from stan_infer.system.gpus import nvidia_gpus
from stan_infer.tensorrt_plans.api import load_tensorrt, reason
from stan_infer.tensorrt_plans.build_process import Job
from stan_infer.tensorrt_plans.options import PlanOptions, profile_fits, profiles_of, targets_of
from stan_infer.tensorrt_plans.plan_file import FLAVORS, FORMATS, Plan, new_plan, read_plan

_COMMAND = python("stan_infer.tensorrt_plans.build_process")
_CANCEL_S = 10.0  # that a cancelled builder has to end by itself
_ERRORS: dict[int, type[StanError]] = {2: InputError, 3: MissingError, 4: CheckError}
_log = logging.getLogger("stan_infer.tensorrt_plans.api")

Progress = Callable[[str, float], None]  # file, part that is done


def check_buildable(engine: str, options: PlanOptions) -> Any:
    """Return the package that builds plans for `engine`, before any work is done for it.

    Raises InputError for options that the engine does not have; MissingError where the package is
    not here, or no GPU for "trt", whose plans are timed on the GPU they are for.
    """
    options.check(engine)
    module = load_tensorrt(engine)
    if engine == "trt" and not nvidia_gpus():
        raise MissingError(
            "a plan of TensorRT is built on the GPU that it is for, and the driver shows none: run "
            "this on the machine with the GPU, or give --format tensorrt-rtx, which builds without "
            "one"
        )
    return module


def build_plans(
    folder: str | Path,
    engine: str,
    options: PlanOptions | None = None,
    *,
    progress: Progress | None = None,
) -> list[Plan]:
    """Build the plans of an exported folder and return them as they were written.

    engine: "trt" or "trt-rtx". A plan appears whole, with its sidecar, or not at all; an earlier
    one of the same name is replaced. Roles that the folder does not have are left out, unless it
    has none of them. progress: called with a file's name and the part that is done.

    Raises what check_buildable does; InputError for a profile beyond the manifest, a graph that
    the parser refuses or a disk that is full; CheckError for a changed file, or where the builder
    warns of a broken graph; MissingError for memory that ran out or a target without the
    precision; KeyboardInterrupt, after the builder was stopped, for Ctrl-C.
    """
    options = options or PlanOptions()
    module = check_buildable(engine, options)
    artefact = read_artefact(folder)
    found = [g for g in map(artefact.graph, dict.fromkeys(options.roles)) if g is not None]
    if not found:
        raise InputError(f"folder {folder} holds none of these graphs: {', '.join(options.roles)}")
    jobs = [
        (g, _job(module, artefact, g, engine, options, profiles_of(artefact, g, options)))
        for g in found
    ]
    return [_build_one(artefact, graph, job, progress or _quiet) for graph, job in jobs]


def rebuild_plan(
    artefact: Artefact,
    plan: Plan,
    *,
    sm: str | None = None,
    gpu: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Build a plan of a folder again as its sidecar says, for what is installed and here.

    sm: a GPU that it must run on ("sm_89"), whatever it was built for. gpu: build on this one.
    Raises what build_plans does.
    """
    graph = artefact.graph(plan.role)
    if graph is None:
        raise InputError(f"folder {artefact.path} holds no {plan.role} graph to build it from")
    targets = dict.fromkeys([*plan.targets, *([sm] if sm and plan.engine == "trt-rtx" else [])])
    options = PlanOptions(
        roles=(plan.role,),
        tf32=bool(plan.sidecar.get("tf32")),
        workspace_mib=plan.options.get("workspace_mib"),
        level=plan.options.get("level"),
        hardware_compatible=plan.hardware == "AMPERE_PLUS",
        version_compatible="VERSION_COMPATIBLE" in plan.flags,
        targets=tuple(targets),
    )
    module = check_buildable(plan.engine, options)
    profiles: list[dict[str, Any]] = [
        {name: [list(shape) for shape in shapes] for name, shapes in p.items()}
        for p in plan.profiles
    ]
    if not all(profile_fits(graph, p) for p in profiles):  # a sidecar is a stranger's
        raise InputError(f"{plan.path}: its profiles are not for {graph.file}; {plan.rebuild()}")
    job = _job(module, artefact, graph, plan.engine, options, profiles)
    return _build_one(artefact, graph, job, progress or _quiet, gpu)


def _job(
    module: Any,
    artefact: Artefact,
    graph: Graph,
    engine: str,
    options: PlanOptions,
    profiles: list[dict[str, Any]],
) -> Job:
    dtypes = {value["name"]: value["dtype"] for value in graph.inputs}
    with checked_graph(artefact, graph) as source:
        for profile in profiles:
            most = {name: (dtypes[name], high) for name, (_, _, high) in profile.items()}
            source.check_sizes(most)
    if options.timing_cache:  # a folder keeps to what its manifest lists
        check_file(options.timing_cache, sources=[artefact.path])
    targets: list[str] = []
    if engine == "trt-rtx":
        targets = targets_of(module, graph.precision, options.targets)
    return Job(
        engine=engine,
        onnx=os.path.abspath(artefact.file(graph.file)),
        out="",
        profiles=profiles,
        tf32=options.tf32,
        workspace_mib=options.workspace_mib,
        level=options.level,
        timing_cache=os.path.abspath(options.timing_cache) if options.timing_cache else None,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
        targets=targets,
        cast_bytes=graph.role == "preprocess",
    )


def plan_path(folder: Path, engine: str, role: str, precision: str, sm: str | None = None) -> Path:
    """Where a plan of a folder lies; sm: of the GPU, for trt, whose plans are for one."""
    where = f"{engine}-{sm}" if engine == "trt" and sm else engine
    return folder / ENGINES_FOLDER / f"{role}.{precision}.{where}.plan"


def run_job(job: Job, progress: Callable[[float], None], gpu: int | None = None) -> dict[str, Any]:
    """Build one plan in a process of its own; see build_process.build for what comes back.

    gpu: number of the only one that the process sees; None: as we do. Raises what the builder
    raises; MissingError where its process died, as from lack of memory.
    """
    answer: dict[str, Any] = {}
    said: list[str] = []

    def on_message(message: dict[str, Any]) -> None:
        if "part" in message:
            progress(message["part"])
        elif "log" in message:
            level = logging.getLevelName(message["log"])
            _log.log(level if isinstance(level, int) else logging.INFO, message["text"])
            said.append(message["text"])
        else:
            answer.update(message)

    request = dataclasses.asdict(job)
    ended = run_child(_COMMAND, request, on_message, env=_only(gpu), grace_s=_CANCEL_S)
    if "done" in answer:
        return dict(answer["done"])
    if answer.get("code") == 130:
        raise KeyboardInterrupt
    if "error" in answer:
        raise _ERRORS.get(answer["code"], StanError)(answer["error"])
    raise MissingError(_died(os.path.basename(job.onnx), ended, said))


def _build_one(
    artefact: Artefact, graph: Graph, job: Job, progress: Progress, gpu: int = 0
) -> Plan:
    folder = artefact.path
    here = nvidia_gpus()[gpu] if job.engine == "trt" else None
    path = plan_path(folder, job.engine, graph.role, graph.precision, (here or {}).get("sm"))
    held = artefact.held(graph.file, *graph.external_data)  # the builder reads them by path
    with _engines_folder(path.parent), new_plan(path) as (temporary, sidecar), held:
        done = run_job(
            dataclasses.replace(job, out=str(temporary)),
            lambda part: progress(path.name, part),
            None if here is None else gpu,
        )
        sidecar |= {
            "flavor": FLAVORS[job.engine],
            "role": graph.role,
            "precision": graph.precision,
            "onnx": graph.file,
            "onnx_sha256": sha256(folder / graph.file),
            "manifest_sha256": sha256(folder / MANIFEST),
            "built_on": here,
            "options": {
                "workspace_mib": job.workspace_mib,
                "level": job.level,
                "timing_cache": bool(job.timing_cache),
            },
            **done,
        }
    progress(path.name, 1.0)
    return read_plan(path)


def _only(gpu: int | None) -> dict[str, str] | None:
    """The environment of a process that sees one GPU, by its number among those that we see."""
    if gpu is None:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = visible.split(",")[gpu] if visible else str(gpu)
    return {**os.environ, "CUDA_VISIBLE_DEVICES": name}


@contextmanager
def _engines_folder(folder: Path) -> Iterator[None]:
    """Make engines/ and take it away again if it stays empty."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as e:
        raise InputError(
            f"cannot write into {folder}: {e.strerror or e}; copy the folder to a place that can "
            "be written"
        ) from e
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or another build's by now
            folder.rmdir()


def _died(name: str, ended: Ended, said: list[str]) -> str:
    """Why a builder's process is gone without a word."""
    code, tail = ended.code, ended.errors
    errors = [line for line in tail.splitlines() if line.strip()]
    last = reason(said[-1:] or errors[-1:])
    if code == -signal.SIGKILL or "bad_alloc" in tail or "MemoryError" in tail:
        return (
            f"building {name} ran out of memory (its process was ended; last: {last}): free some, "
            "or give profiles with a smaller batch or fewer frames"
        )
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return (
        f"NVIDIA's builder crashed on {name} ({how}; last: {last}): try other profiles "
        f"(--batch, --frames), --level, or another version of {' or '.join(FORMATS.values())}"
    )


def _quiet(name: str, part: float) -> None:
    """No progress."""
