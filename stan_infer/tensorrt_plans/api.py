"""NVIDIA's builder and runtime by one set of calls: TensorRT 10, TensorRT 11, TensorRT for RTX.

Version 11 took away every precision flag and calibrator, and RTX has neither timing cache nor
algorithm selector. What is used here has the same name in all three: COMMON, and RTX_ONLY where it
is asked for RTX. Tests hold both against the bindings.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stan_infer.errors import MissingError
from stan_infer.system.packages import install_command
from stan_infer.tensorrt_plans.plan_file import FLAVORS

# Versions whose names were compared with these: smallest, and the first that is too new.
SUPPORTED = {"tensorrt": ((10, 0), (12, 0)), "tensorrt_rtx": ((1, 0), (2, 0))}

COMMON: dict[str, tuple[str, ...]] = {
    "Builder": (
        "build_serialized_network",
        "create_builder_config",
        "create_network",
        "create_optimization_profile",
    ),
    "BuilderFlag": ("TF32",),
    "DataType": ("BF16", "BOOL", "FLOAT", "HALF", "INT32", "INT64", "INT8", "UINT8"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "IBuilderConfig": (
        "add_optimization_profile",
        "builder_optimization_level",
        "clear_flag",
        "progress_monitor",
        "set_flag",
        "set_memory_pool_limit",
    ),
    "ICudaEngine": (
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_shape",
        "num_io_tensors",
    ),
    "IExecutionContext": (
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    ),
    "ILogger": ("ERROR", "INFO", "INTERNAL_ERROR", "VERBOSE", "WARNING"),
    "INetworkDefinition": ("get_input", "get_output", "num_inputs", "num_layers", "num_outputs"),
    "IOptimizationProfile": ("set_shape",),
    "IProgressMonitor": ("phase_finish", "phase_start", "step_complete"),
    "ITensor": ("dtype", "name", "shape"),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "OnnxParser": ("get_error", "num_errors", "parse", "parse_from_file"),
    "ParserError": ("desc", "node_name", "node_operator"),
    "Runtime": ("deserialize_cuda_engine",),
    "TensorIOMode": ("INPUT",),
}
# Of TensorRT proper: RTX compiles on the user's machine and has nothing to time.
TRT_ONLY: dict[str, tuple[str, ...]] = {
    "BuilderFlag": ("VERSION_COMPATIBLE",),  # NVIDIA: RTX's plans fit their own release only
    "HardwareCompatibilityLevel": ("AMPERE_PLUS",),
    "IBuilderConfig": (
        "create_timing_cache",
        "get_timing_cache",
        "hardware_compatibility_level",
        "set_timing_cache",
    ),
    "ITimingCache": ("serialize",),
}
RTX_ONLY: dict[str, tuple[str, ...]] = {
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
    "CudaGraphStrategy": ("WHOLE_GRAPH_CAPTURE",),
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability"),
    "ICudaEngine": ("create_runtime_config",),
    "IRuntimeCache": ("deserialize", "serialize"),
    "IRuntimeConfig": (
        "create_runtime_cache",
        "cuda_graph_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    ),
}

_log = logging.getLogger(__name__)


def load_tensorrt(engine: str) -> Any:
    """Import the package of engine "trt" or "trt-rtx".

    Raises MissingError, with the command that helps, for a package that is absent, the stub
    without its libraries, a version that was never compared, or one that lacks a name.
    """
    flavor = FLAVORS[engine]
    try:
        module = importlib.import_module(flavor)
    except ModuleNotFoundError as e:
        if e.name == flavor:
            # Each engine's extra has its name.
            install = f"{install_command(engine)}{_other(engine)}"
            raise MissingError(f"engine {engine} needs {flavor}: {install}") from e
        raise MissingError(_stub(engine, flavor, e)) from e
    except (Exception, SystemExit) as e:  # a broken package may raise anything
        raise MissingError(_stub(engine, flavor, e)) from e
    if not hasattr(module, "Builder"):
        raise MissingError(_stub(engine, flavor, "it has no Builder"))
    low, end = SUPPORTED[flavor]
    found = version_of(module)
    if not low <= found[:2] < end:
        raise MissingError(
            f"{flavor} {module.__version__} is not known to this version of stan_infer, which "
            f'knows {low[0]}.{low[1]} up to {end[0]}.0: pip install "{flavor.replace("_", "-")}'
            f'<{end[0]}" (and at least {low[0]})'
        )
    lacks = missing_names(module, engine)
    if lacks:
        raise MissingError(
            f"{flavor} {module.__version__} lacks {', '.join(lacks[:4])}, which stan_infer calls: "
            f"pip install --upgrade {flavor.replace('_', '-')}"
        )
    return module


def version_of(module: Any) -> tuple[int, ...]:
    """ "10.16.1.11" -> (10, 16, 1, 11)."""
    return tuple(int(part) for part in str(module.__version__).split(".") if part.isdigit())


def used_names(engine: str) -> dict[str, set[str]]:
    """Every class and member that may be called with an engine's package."""
    extra = RTX_ONLY if engine == "trt-rtx" else TRT_ONLY
    classes = {*COMMON, *extra}
    return {c: {*COMMON.get(c, ()), *extra.get(c, ())} for c in classes}


def missing_names(module: Any, engine: str) -> list[str]:
    """Names that are called with this engine and that a module does not have."""
    found = []
    for name, members in sorted(used_names(engine).items()):
        found += [f"{name}.{m}" for m in sorted(members - set(dir(getattr(module, name, None))))]
    return found


@functools.cache
def message_log(module: Any) -> Any:
    """The process's one log object of a module: a second one is ignored by NVIDIA's library.

    `errors` and `warnings` are its last messages of that kind, for whoever has to say why nothing
    came back; all messages go on to this module's logger.
    """

    # The base is known only when it runs: one of two packages, of which none may be here.
    class MessageLog(module.ILogger):  # type: ignore[name-defined, misc]
        """Collects what NVIDIA's library says."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=100)
            self.warnings: deque[str] = deque(maxlen=1000)

        def log(self, severity: Any, message: str) -> None:
            """Keep one message; called from NVIDIA's threads."""
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
                _log.info("%s", message)
            elif severity == module.ILogger.WARNING:
                self.warnings.append(message)
                _log.info("%s", message)
            else:
                _log.debug("%s", message)

    return MessageLog()


def reason(errors: list[str]) -> str:
    """The message among NVIDIA's errors that says most: the first that is no mere echo.

    A machine without a driver reports that with every call, also where none is needed.
    """
    telling = [e for e in errors if "cudaError 35" not in e] or errors
    text = " ".join((telling or ["no reason was logged"])[0].split())
    return text if len(text) <= 500 else f"{text[:500]} ..."


def _stub(engine: str, flavor: str, error: object) -> str:
    unloadable = _unloadable_library(flavor)
    if unloadable:
        return (
            f"engine {engine}: {flavor} is installed but its library does not load "
            f"({unloadable[:300]}): give the process more memory, or where there is enough of it "
            f"the file is damaged: pip install --force-reinstall {flavor.replace('_', '-')} "
            "--extra-index-url https://pypi.nvidia.com"
        )
    return (
        f"engine {engine}: {flavor} is installed but does not load ({str(error)[:160]}): NVIDIA's "
        "libraries are not here, which the package on the public index fetches from NVIDIA's own "
        f"index: pip install --force-reinstall {flavor.replace('_', '-')} "
        "--extra-index-url https://pypi.nvidia.com"
    )


def _unloadable_library(flavor: str) -> str:
    """What the loader says of the first of NVIDIA's libraries that is here and does not load.

    Their package passes over it in silence, and its bindings then report a file that is not there.
    """
    spec = find_spec(f"{flavor}_libs")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("lib*.so*")):
            try:
                ctypes.CDLL(str(library))
            except OSError as e:
                return str(e)
    return ""


def _other(engine: str) -> str:
    """Names the sister package where that one is here."""
    sister = "trt" if engine == "trt-rtx" else "trt-rtx"
    here = find_spec(FLAVORS[sister]) is not None
    return f" ({FLAVORS[sister]} is installed: --engine {sister})" if here else ""
