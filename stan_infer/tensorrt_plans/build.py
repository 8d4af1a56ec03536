"""Building plans from an exported folder's graphs, into its engines/, each with a sidecar."""

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
_CANCEL_S = 10.0  # how long a cancelled builder may take to end by itself
_ERRORS: dict[int, type[StanError]] = {2: InputError, 3: MissingError, 4: CheckError}
_log = logging.getLogger("stan_infer.tensorrt_plans.api")

Progress = Callable[[str, float], None]  # name of the plan's file, part that is done (0 to 1)


def check_buildable(engine: str, options: PlanOptions) -> Any:
    """Check that plans for `engine` can be built here; return the package that builds them.

    Raises InputError for options that the engine does not have, and MissingError if the package is
    missing, or a GPU for "trt", which builds plans by timing them on the GPU that will run them.
    """
    options.check(engine)
    module = load_tensorrt(engine)
    if engine == "trt" and not nvidia_gpus():
        raise MissingError(
            "a plan of TensorRT is built on the GPU that will run it, and the driver shows none: "
            "run this on the machine with the GPU, or give --format tensorrt-rtx, which builds "
            "without one"
        )
    return module


def build_plans(
    folder: str | Path,
    engine: str,
    options: PlanOptions | None = None,
    *,
    progress: Progress | None = None,
) -> list[Plan]:
    """Build plans of an exported folder's graphs, write them into the folder and return them.

    engine: "trt" or "trt-rtx". A plan appears whole, with its sidecar, or not at all; an earlier
    one of the same name is replaced. Roles that the folder does not have are left out; it must have
    one of them. progress: called with the name of a plan's file and the part that is done.

    Raises as check_buildable does; InputError for a profile outside the manifest's ranges, a graph
    that the parser refuses or a full disk; CheckError for a changed file, or if the builder warns
    that a graph is broken; MissingError if memory runs out or a target lacks the precision;
    KeyboardInterrupt for Ctrl-C, after the builder was stopped.
    """
    options = options or PlanOptions()
    module = check_buildable(engine, options)
    artefact = read_artefact(folder)
    found = [g for g in map(artefact.graph, dict.fromkeys(options.roles)) if g is not None]
    if not found:
        raise InputError(f"folder {folder} holds none of these graphs: {', '.join(options.roles)}")
    jobs = [  # all are checked before the first is built
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
    """Build a plan again with the options in its sidecar, for the installed TensorRT and this GPU.

    sm: a GPU that the plan must run on ("sm_89"), in addition to its targets. gpu: number of the
    GPU to build on. Raises as build_plans does.
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
    profiles: list[dict[str, Any]] = list(plan.profiles)
    if not all(profile_fits(graph, p) for p in profiles):  # a sidecar may come from a stranger
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
    with checked_graph(artefact, graph) as checked:
        for profile in profiles:
            checked.check_sizes({k: (dtypes[k], high) for k, (_, _, high) in profile.items()})
    if options.timing_cache:  # it may not lie in the folder, whose manifest does not list it
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


def run_job(job: Job, progress: Callable[[float], None], gpu: int | None = None) -> dict[str, Any]:
    """Build one plan in a process of its own; returns what build_process.build returns.

    gpu: number of the only GPU that the process sees; None: it sees what we see. Raises as
    build_process.build does, and MissingError if the process died, as when memory runs out.
    """
    answer: dict[str, Any] = {}
    said: list[str] = []

    def on_message(message: dict[str, Any]) -> None:
        if "part" in message:
            progress(message["part"])
        elif "log" in message:
            _log.info("%s", message["log"])
            said.append(message["log"])
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
    device = nvidia_gpus()[gpu] if job.engine == "trt" else None
    runs_on = f"{job.engine}-{device['sm']}" if device else job.engine
    path = folder / ENGINES_FOLDER / f"{graph.role}.{graph.precision}.{runs_on}.plan"
    held = artefact.held(graph.file, *graph.external_data)  # the builder opens them by name
    with _engines_folder(path.parent), new_plan(path) as (temporary, sidecar), held:
        done = run_job(
            dataclasses.replace(job, out=str(temporary)),
            lambda part: progress(path.name, part),
            None if device is None else gpu,
        )
        sidecar |= {
            "flavor": FLAVORS[job.engine],
            "role": graph.role,
            "precision": graph.precision,
            "onnx": graph.file,
            "onnx_sha256": sha256(folder / graph.file),
            "manifest_sha256": sha256(folder / MANIFEST),
            "built_on": device,
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
    """The environment of a process that sees one GPU, given by its number among those we see."""
    if gpu is None:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = visible.split(",")[gpu] if visible else str(gpu)
    return {**os.environ, "CUDA_VISIBLE_DEVICES": name}


@contextmanager
def _engines_folder(folder: Path) -> Iterator[None]:
    """Make engines/, and remove it at the end if it is empty."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as e:
        raise InputError(
            f"cannot write into {folder}: {e.strerror or e}; copy the exported folder to a place "
            "that can be written"
        ) from e
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or already removed by another build
            folder.rmdir()


def _died(name: str, ended: Ended, said: list[str]) -> str:
    """The message for a builder whose process ended without an answer.

    said: NVIDIA's messages before that.
    """
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
    """Report no progress."""
