"""A folder's ONNX graphs -> plans in its engines/, each beside a sidecar that says what it is."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stan_infer.artefact import ENGINES_FOLDER, MANIFEST, Artefact, Graph, read_artefact, sha256
from stan_infer.atomic import new_file
from stan_infer.errors import CheckError, InputError, MissingError, StanError
from stan_infer.export.build_plan import Job
from stan_infer.export.plan_options import PlanOptions, profiles_of, targets_of
from stan_infer.machine import nvidia_gpus
from stan_infer.onnx_file import check_external
from stan_infer.plan_file import ENGINES, FORMATS, Plan, read_plan, sidecar_path, write_sidecar
from stan_infer.tensorrt_api import load_tensorrt, reason

_COMMAND = (sys.executable, "-P", "-m", "stan_infer.export.build_plan")
_CANCEL_S = 10.0  # that a cancelled builder has to end by itself
_ERRORS: dict[int, type[StanError]] = {2: InputError, 3: MissingError, 4: CheckError}
_log = logging.getLogger("stan_infer.tensorrt_api")

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
            "a plan of TensorRT is built on the GPU that it is for, and nvidia-smi shows none here:"
            " run this on the machine with the GPU, or give --format tensorrt-rtx, which builds "
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


def rebuild_plan(artefact: Artefact, plan: Plan, progress: Progress | None = None) -> Plan:
    """Build a plan of a folder again as its sidecar says, for what is installed and here.

    Raises what build_plans does.
    """
    graph = artefact.graph(plan.role)
    if graph is None:
        raise InputError(f"folder {artefact.path} holds no {plan.role} graph to build it from")
    sidecar = plan.sidecar
    given = sidecar.get("options") or {}
    options = PlanOptions(
        roles=(plan.role,),
        tf32=bool(sidecar.get("tf32")),
        workspace_mib=given.get("workspace_mib"),
        level=given.get("level"),
        hardware_compatible=sidecar.get("hardware_compatibility") == "AMPERE_PLUS",
        version_compatible="VERSION_COMPATIBLE" in sidecar.get("flags", []),
        targets=tuple(sidecar.get("targets") or ()),
    )
    module = check_buildable(plan.engine, options)
    dims = profiles_of(artefact, graph, options)  # a sidecar is a stranger's: names and ranks
    profiles: list[dict[str, Any]] = [
        {name: [list(shape) for shape in shapes] for name, shapes in p.items()}
        for p in plan.profiles
    ]
    if any(p.keys() != dims[0].keys() for p in profiles):
        raise InputError(f"{plan.path}: its profiles are not for {graph.file}; {plan.rebuild()}")
    job = _job(module, artefact, graph, plan.engine, options, profiles)
    return _build_one(artefact, graph, job, progress or _quiet)


def _job(
    module: Any,
    artefact: Artefact,
    graph: Graph,
    engine: str,
    options: PlanOptions,
    profiles: list[dict[str, Any]],
) -> Job:
    targets: list[str] = []
    if engine == "trt-rtx":
        targets = targets_of(module, graph.precision, options.targets)
    return Job(
        engine=engine,
        onnx=_checked_onnx(artefact, graph),
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


def _checked_onnx(artefact: Artefact, graph: Graph) -> str:
    """The graph's file, which reads no file that has no hash."""
    path = artefact.path / graph.file
    entry = next(g for g in artefact.manifest["graphs"] if g["file"] == graph.file)
    check_external(path, [str(name) for name in entry.get("external_data") or []])
    return os.path.abspath(path)


def plan_path(folder: Path, engine: str, role: str, precision: str, sm: str | None = None) -> Path:
    """Where a plan of a folder lies; sm: of the GPU, for trt, whose plans are for one."""
    where = f"{engine}-{sm}" if engine == "trt" and sm else engine
    return folder / ENGINES_FOLDER / f"{role}.{precision}.{where}.plan"


def run_job(job: Job, progress: Callable[[float], None]) -> dict[str, Any]:
    """Build one plan in a process of its own; see build_plan.build for what comes back.

    Raises what the builder raises; MissingError where its process died, as from lack of memory.
    """
    name = os.path.basename(job.onnx)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            # A Ctrl-C goes to us, who ask it to stop: in the builder it would be lost or kill.
            start_new_session=True,
        )
        answer: dict[str, Any] = {}
        said: list[str] = []
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(dataclasses.asdict(job)))
            process.stdin.close()
            for line in process.stdout:
                message = json.loads(line)
                if "part" in message:
                    progress(message["part"])
                elif "log" in message:
                    level = logging.getLevelName(message["log"])
                    _log.log(level if isinstance(level, int) else logging.INFO, message["text"])
                    said.append(message["text"])
                else:
                    answer = message
            process.wait()
        except BaseException:
            _stop(process)
            raise
        errors.seek(0)
        tail = errors.read()[-2000:].decode("utf-8", "replace")
    if "done" in answer:
        return dict(answer["done"])
    if answer.get("code") == 130:
        raise KeyboardInterrupt
    if "error" in answer:
        raise _ERRORS.get(answer["code"], StanError)(answer["error"])
    raise MissingError(_died(name, process.returncode, said, tail))


def _build_one(artefact: Artefact, graph: Graph, job: Job, progress: Progress) -> Plan:
    folder = artefact.path
    gpu = next(iter(nvidia_gpus()), None) if job.engine == "trt" else None
    path = plan_path(folder, job.engine, graph.role, graph.precision, (gpu or {}).get("sm"))
    with _engines_folder(path.parent), new_file(path) as temporary:
        done = run_job(
            dataclasses.replace(job, out=str(temporary)), lambda part: progress(path.name, part)
        )
        beside = sidecar_path(path)
        beside.unlink(missing_ok=True)  # that of an earlier plan says nothing of this one
    write_sidecar(
        path,
        {
            "flavor": ENGINES[job.engine],
            "role": graph.role,
            "precision": graph.precision,
            "onnx": graph.file,
            "onnx_sha256": sha256(folder / graph.file),
            "manifest_sha256": sha256(folder / MANIFEST),
            "built_on": gpu,
            "options": {
                "workspace_mib": job.workspace_mib,
                "level": job.level,
                "timing_cache": bool(job.timing_cache),
            },
            **done,
        },
    )
    progress(path.name, 1.0)
    return read_plan(path)


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
        if not any(folder.iterdir()):
            folder.rmdir()


def _stop(process: subprocess.Popen[str]) -> None:
    """Ask the builder to end, and end it if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_CANCEL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _died(name: str, code: int, said: list[str], tail: str) -> str:
    """Why a builder's process is gone without a word."""
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
