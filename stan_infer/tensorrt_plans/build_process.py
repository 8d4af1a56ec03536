"""Building one plan in a process of its own: python -m stan_infer.tensorrt_plans.build_process

NVIDIA's builder may crash or run out of memory, prints to any stream, and has one log per process;
a process of its own keeps that away from the caller. Standard input is a Job as JSON. Standard
output is JSON, one object a line: {"part"} for progress, {"log"} for NVIDIA's messages, and
at the end {"done"} or {"error", "code"}.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stan_infer.errors import CheckError, InputError, MissingError, StanError
from stan_infer.system.atomic import new_file
from stan_infer.system.child import send
from stan_infer.system.machine import peak_mib
from stan_infer.tensorrt_plans.api import load_tensorrt, message_log, reason, version_of

# The builder only warns of these, but the plan then fails when it runs, or gives wrong outputs.
_BROKEN = ("not self-consistent", "out of bounds access")
# The last is the message of a thread that cannot allocate its stack.
_NO_MEMORY = ("OutOfMemory", "ut of memory", "bad_alloc", "Resource temporarily unavailable")
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32",
    "INT64": "int64", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One plan to build, in values that JSON can hold. Most are those of PlanOptions.

    onnx, out: paths of the graph and the plan. profiles: input -> smallest, optimal, largest shape.
    targets: empty leaves them to the builder. timing_cache: read if it exists, and written again.
    cast_bytes: whether the graph needs cast_bytes.
    """

    engine: str
    onnx: str
    out: str
    profiles: list[dict[str, list[list[int]]]]
    tf32: bool = False
    workspace_mib: int | None = None
    level: int | None = None
    timing_cache: str | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    targets: list[str] = dataclasses.field(default_factory=list)
    cast_bytes: bool = False


def build(job: Job, module: Any, progress: Callable[[float], bool]) -> dict[str, Any]:
    """Build the plan, write it to job.out and return what its sidecar says of the build.

    module: tensorrt or tensorrt_rtx. progress: called with the part that is done; it returns False
    to cancel. Raises InputError for a graph or profile that is refused, CheckError if a warning
    says that the plan would be wrong, MissingError if memory runs out or a target lacks the
    precision, KeyboardInterrupt if it was cancelled.
    """
    started = time.monotonic()
    log = message_log(module)
    log.errors.clear()
    log.warnings.clear()
    name = os.path.basename(job.onnx)
    builder = module.Builder(log)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, log)
    onnx = cast_bytes(Path(job.onnx)) if job.cast_bytes else None
    if not (parser.parse(onnx) if onnx else parser.parse_from_file(job.onnx)):
        raise InputError(_refused(parser, name, log))
    config = builder.create_builder_config()
    _configure(config, job, module)
    for i, shapes in enumerate(job.profiles):
        profile = builder.create_optimization_profile()
        for tensor, (low, best, high) in shapes.items():
            profile.set_shape(tensor, tuple(low), tuple(best), tuple(high))
        if config.add_optimization_profile(profile) < 0:
            raise InputError(f"profile {i} of {name} is refused: {reason(list(log.errors))}")
    config.progress_monitor = monitor = progress_monitor(module, progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        errors = list(log.errors)
        if monitor.cancelled or any("BuildCanceled" in e for e in errors):
            raise KeyboardInterrupt
        raise _why_nothing(name, errors, job)
    broken = [w for w in log.warnings if any(word in w for word in _BROKEN)]
    if broken:
        raise CheckError(
            f"the plan of {name} would be wrong, as the builder itself warns: {reason(broken)}: "
            "export the checkpoint again"
        )
    with open(job.out, "wb") as f:
        f.write(plan)
    if job.timing_cache:
        _write_cache(config, Path(job.timing_cache), log)
    return {
        "trt_version": list(version_of(module)),
        "tf32": job.tf32,
        "flags": ["VERSION_COMPATIBLE"] if job.version_compatible else [],
        "hardware_compatibility": "AMPERE_PLUS" if job.hardware_compatible else "NONE",
        "targets": job.targets,
        "profiles": job.profiles,
        "io": _io(network),
        "layers": network.num_layers,
        "warnings": sorted(set(log.warnings)),
        "build_seconds": time.monotonic() - started,
        "build_peak_mib": peak_mib(),
    }


def cast_bytes(path: Path) -> bytes:
    """Return a graph without external data, with a cast to float16 behind each uint8 input.

    TensorRT takes uint8 only as inputs and outputs of a network; float16 holds every pixel value.
    Other runtimes are faster with uint8 throughout, so the file itself stays as it is.
    """
    import onnx

    model = onnx.load(str(path))
    uint8 = {
        i.name for i in model.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    }
    readers = [n for n in model.graph.node if n.op_type not in ("Cast", "Shape")]
    for name in sorted(uint8 & {x for n in readers for x in n.input}):
        for node in readers:
            node.input[:] = [f"{name}/half" if x == name else x for x in node.input]
        cast = onnx.helper.make_node(
            "Cast", [name], [f"{name}/half"], f"{name}/Cast", to=onnx.TensorProto.FLOAT16
        )
        model.graph.node.insert(0, cast)
    return model.SerializeToString()


def progress_monitor(module: Any, progress: Callable[[float], bool]) -> Any:
    """An IProgressMonitor that turns the builder's nested phases into one part of the whole."""

    # The base class comes from a package that is optional, so this class is made here.
    class Monitor(module.IProgressMonitor):  # type: ignore[name-defined, misc]
        """See progress_monitor."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._phases: dict[str, list[Any]] = {}  # name -> parent, steps, done

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            """A phase begins, inside another one or by itself."""
            self._phases[name] = [parent, max(steps, 1), 0]

        def step_complete(self, name: str, step: int) -> bool:
            """One step is done; False ends the build."""
            if name in self._phases:
                self._phases[name][2] = step + 1
            self.cancelled = self.cancelled or not progress(self._part(name))
            return not self.cancelled

        def phase_finish(self, name: str) -> None:
            """A phase ends."""
            self._phases.pop(name, None)

        def _part(self, name: str | None) -> float:
            part, seen = 0.0, 0
            while name in self._phases and seen < 20:
                parent, steps, done = self._phases[name]
                part = min((done + part) / steps, 1.0)
                name, seen = parent, seen + 1
            return part

    return Monitor()


def _configure(config: Any, job: Job, module: Any) -> None:
    flags = module.BuilderFlag
    if job.tf32:
        config.set_flag(flags.TF32)
    else:
        config.clear_flag(flags.TF32)  # on by default; it has 10 bits of mantissa instead of 23
    if job.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if job.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if job.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, job.workspace_mib * 2**20)
    if job.level is not None:
        config.builder_optimization_level = job.level
    if job.targets:
        config.num_compute_capabilities = len(job.targets)
        for i, sm in enumerate(job.targets):
            kind = getattr(module.ComputeCapability, sm.upper().replace("_", ""))
            config.set_compute_capability(kind, i)
    if job.timing_cache:
        path = Path(job.timing_cache)
        stored = path.read_bytes() if path.is_file() else b""
        cache = config.create_timing_cache(stored)
        if cache is None or not config.set_timing_cache(cache, False):
            raise InputError(
                f"timing cache {path} was made by another TensorRT or GPU: delete it, or give "
                "another file"
            )


def _refused(parser: Any, name: str, log: Any) -> str:
    if not parser.num_errors:
        return f"TensorRT's parser refuses {name}: {reason(list(log.errors))}"
    error = parser.get_error(0)
    place = error.node_name() or "the graph"
    operator = f" (operator {error.node_operator()})" if error.node_operator() else ""
    more = f"; {parser.num_errors} errors in all" if parser.num_errors > 1 else ""
    text = " ".join(error.desc().split())[:400]
    return f"TensorRT's parser refuses {place}{operator} in {name}: {text}{more}"


def _why_nothing(name: str, errors: list[str], job: Job) -> StanError:
    """The error for a build that returned no plan, from NVIDIA's messages."""
    text = "\n".join(errors)
    why = reason(errors)
    if any(word in text for word in _NO_MEMORY):
        return MissingError(
            f"building {name} ran out of memory ({why}): give --workspace MIB, or profiles with a "
            "smaller batch or fewer frames"
        )
    if "HW-specific datatypes" in text:
        return MissingError(
            f"{name} cannot be compiled for {', '.join(job.targets) or 'every target'}: {why}: "
            "give --target with newer GPUs, or export with another --precision"
        )
    return InputError(f"TensorRT built no plan from {name}: {why}")


def _write_cache(config: Any, path: Path, log: Any) -> None:
    """Write the timings. The plan is written by now, so a failure becomes only a warning."""
    try:
        with new_file(path) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    except InputError as e:
        log.warnings.append(str(e))


def _io(network: Any) -> list[dict[str, Any]]:
    tensors = [("input", network.get_input(i)) for i in range(network.num_inputs)]
    tensors += [("output", network.get_output(i)) for i in range(network.num_outputs)]
    return [
        {
            "name": tensor.name,
            "mode": mode,
            "dtype": _DTYPES[str(tensor.dtype).rsplit(".", 1)[-1]],
            "shape": [int(n) for n in tensor.shape],
        }
        for mode, tensor in tensors
    ]


class _LogHandler(logging.Handler):
    """Sends NVIDIA's messages to the parent at once: after a crash it would be too late."""

    def __init__(self, put: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.INFO)
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message."""
        self._put({"log": record.getMessage()[:2000]})


def main() -> int:
    """Build the job on standard input; returns the exit code."""
    # What the libraries print goes to standard error; the pipe to the parent carries JSON alone.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    put = functools.partial(send, pipe)
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    log = logging.getLogger("stan_infer.tensorrt_plans.api")
    log.setLevel(logging.INFO)
    log.addHandler(_LogHandler(put))
    log.propagate = False
    sent = 0.0

    def progress(part: float) -> bool:
        nonlocal sent
        if abs(part - sent) >= 0.01:
            sent = part
            put({"part": part})
        return not stopped

    answer: dict[str, Any]
    try:
        job = Job(**json.loads(sys.stdin.read()))
        answer = {"done": build(job, load_tensorrt(job.engine), progress)}
    except StanError as e:
        answer = {"error": str(e), "code": e.exit_code}
    except MemoryError:
        answer = {"error": "building ran out of memory", "code": MissingError.exit_code}
    except OSError as e:
        why = f"cannot write the plan: {e.strerror or e}; free some space"
        answer = {"error": why, "code": InputError.exit_code}
    except KeyboardInterrupt:
        answer = {"error": "cancelled", "code": 130}
    put(answer)
    return int(answer.get("code", 0))


if __name__ == "__main__":
    sys.exit(main())
