"""ONNX -> plan, in its own process: python -m stan_infer.tensorrt_plans.build_process < job.json

NVIDIA's builder may crash or run out of memory, prints where it likes and keeps one log for a whole
process; none of that may take its caller along. Standard output carries JSON, one object a line:
{"part"} as it goes on, {"log", "text"} of NVIDIA's messages, and at last {"done"} or {"error"}.
"""

from __future__ import annotations

import dataclasses
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
from stan_infer.system.machine import peak_mib
from stan_infer.tensorrt_plans.api import load_tensorrt, message_log, reason, version_of

# Warnings behind which the plan is wrong: it builds, and fails or lies when it runs.
_BROKEN = ("not self-consistent", "out of bounds access")
# The last is what a thread that finds no room for its stack says.
_NO_MEMORY = ("OutOfMemory", "ut of memory", "bad_alloc", "Resource temporarily unavailable")
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32",
    "INT64": "int64", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One plan to build; all of it plain values that go through JSON.

    profiles: input -> smallest, optimal, largest shape. targets: "sm_89", ... of trt-rtx; empty is
    the builder's own choice. workspace_mib, level: None leaves them to the builder. timing_cache:
    of trt, read where it exists and written again. cast_bytes: see cast_bytes.
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
    """Build the plan into job.out and return what its sidecar says of the build.

    module: tensorrt or tensorrt_rtx. progress: gets the part that is done; False cancels. Raises
    InputError for a graph or profile that is refused, CheckError where a warning tells that the
    plan would be wrong, MissingError for memory or a target that is not there, KeyboardInterrupt
    when it was cancelled.
    """
    started = time.monotonic()
    log = message_log(module)
    log.errors.clear()
    log.warnings.clear()
    name = os.path.basename(job.onnx)
    builder = module.Builder(log)
    strongly = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly)
    parser = module.OnnxParser(network, log)
    if job.cast_bytes:
        parsed = parser.parse(cast_bytes(Path(job.onnx)))
    else:
        parsed = parser.parse_from_file(job.onnx)
    if not parsed:
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
        _raise_why(name, monitor.cancelled, list(log.errors), job)
    broken = [w for w in log.warnings if any(word in w for word in _BROKEN)]
    if broken:
        raise CheckError(
            f"{name} would be a wrong plan, by the builder's own warning: {reason(broken)}: export "
            "the checkpoint again"
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
    """A graph without external data, its uint8 inputs cast where they come in.

    TensorRT has uint8 at a network's edges only; float16 holds every pixel. Other runtimes are
    quicker with the bytes, so the file stays as it is.
    """
    import onnx

    head = onnx.load(str(path))
    bytes_in = {
        i.name for i in head.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    }
    reads = [n for n in head.graph.node if n.op_type not in ("Cast", "Shape")]
    for name in sorted(bytes_in & {x for n in reads for x in n.input}):
        for node in reads:
            node.input[:] = [f"{name}/half" if x == name else x for x in node.input]
        cast = onnx.helper.make_node(
            "Cast", [name], [f"{name}/half"], f"{name}/Cast", to=onnx.TensorProto.FLOAT16
        )
        head.graph.node.insert(0, cast)
    return head.SerializeToString()


def progress_monitor(module: Any, progress: Callable[[float], bool]) -> Any:
    """An IProgressMonitor that adds the nested phases up to one part of the whole."""

    # The base is known only when it runs: one of two packages, of which none may be here.
    class Monitor(module.IProgressMonitor):  # type: ignore[name-defined, misc]
        """See progress_monitor."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._phases: dict[str, list[Any]] = {}  # name -> parent, steps, done

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            """A phase begins, inside another or as the first."""
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
        config.clear_flag(flags.TF32)  # it is on by default, and costs fp32 ten bits
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


def _raise_why(name: str, cancelled: bool, errors: list[str], job: Job) -> None:
    """Raise what a build that gave nothing says in its log."""
    text = "\n".join(errors)
    if cancelled or "BuildCanceled" in text:
        raise KeyboardInterrupt
    why = reason(errors)
    if any(word in text for word in _NO_MEMORY):
        raise MissingError(
            f"building {name} ran out of memory ({why}): give --workspace MIB, or profiles with a "
            "smaller batch or fewer frames"
        )
    if "HW-specific datatypes" in text:
        raise MissingError(
            f"{name} cannot be compiled for {', '.join(job.targets) or 'every target'}: {why}: "
            "give --target with newer GPUs, or export with another --precision"
        )
    raise InputError(f"TensorRT built nothing from {name}: {why}")


def _write_cache(config: Any, path: Path, log: Any) -> None:
    """Keep the timings; the plan is made by now, so it only says that it cannot."""
    from stan_infer.system.atomic import new_file

    try:
        with new_file(path) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    except InputError as e:
        log.warnings.append(str(e))


def _io(network: Any) -> list[dict[str, Any]]:
    found = []
    for mode, count, get in (
        ("input", network.num_inputs, network.get_input),
        ("output", network.num_outputs, network.get_output),
    ):
        for tensor in (get(i) for i in range(count)):
            dtype = str(tensor.dtype).rsplit(".", 1)[-1]
            found.append(
                {
                    "name": tensor.name,
                    "mode": mode,
                    "dtype": _DTYPES.get(dtype, dtype),
                    "shape": [int(n) for n in tensor.shape],
                }
            )
    return found


class _Lines:
    """Standard output as it was, for JSON alone: what the libraries print goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def put(self, **values: Any) -> None:
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()


class _Handler(logging.Handler):
    """Sends NVIDIA's messages on, as they come: a crash leaves no time at the end."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message."""
        self._lines.put(log=record.levelname, text=record.getMessage()[:2000])


def main() -> int:
    """Build the job on standard input; the exit code is that of the error."""
    lines = _Lines()
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    log = logging.getLogger("stan_infer.tensorrt_plans.api")
    log.setLevel(logging.INFO)
    log.addHandler(_Handler(lines))
    log.propagate = False
    told = [0.0]

    def progress(part: float) -> bool:
        if abs(part - told[0]) >= 0.01:
            told[0] = part
            lines.put(part=part)
        return not stopped

    try:
        job = Job(**json.loads(sys.stdin.read()))
        done = build(job, load_tensorrt(job.engine), progress)
    except StanError as e:
        lines.put(error=str(e), code=e.exit_code)
        return e.exit_code
    except MemoryError:
        lines.put(error="building ran out of memory", code=MissingError.exit_code)
        return MissingError.exit_code
    except OSError as e:
        lines.put(error=f"cannot write the plan: {e.strerror or e}; free some space", code=2)
        return 2
    except KeyboardInterrupt:
        lines.put(error="cancelled", code=130)
        return 130
    lines.put(done=done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
