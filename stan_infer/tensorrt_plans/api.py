"""Loading TensorRT 10, TensorRT 11 or TensorRT for RTX, and the list of what we call in them.

Version 11 has no precision flags and no calibrators any more, and RTX has neither timing cache nor
algorithm selector. So we call what has the same name in all three (COMMON), and a few names of one
package (TRT_ONLY, RTX_ONLY). Tests compare the lists with the names of each version.
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

# Versions whose names were compared with the lists: the oldest, and the first that is too new.
SUPPORTED = {"tensorrt": ((10, 0), (12, 0)), "tensorrt_rtx": ((1, 0), (2, 0))}

# Class -> its members that we use.
COMMON = {
    "Builder": (
        "build_serialized_network create_builder_config create_network create_optimization_profile"
    ),
    "BuilderFlag": "TF32",
    "DataType": "BF16 BOOL FLOAT HALF INT32 INT64 INT8 UINT8",
    "ExecutionContextAllocationStrategy": "USER_MANAGED",
    "IBuilderConfig": (
        "add_optimization_profile builder_optimization_level clear_flag progress_monitor "
        "set_flag set_memory_pool_limit"
    ),
    "ICudaEngine": (
        "create_execution_context get_tensor_dtype get_tensor_mode get_tensor_name "
        "get_tensor_shape num_io_tensors"
    ),
    "IExecutionContext": (
        "execute_async_v3 get_tensor_shape infer_shapes set_device_memory set_input_shape "
        "set_optimization_profile_async set_tensor_address update_device_memory_size_for_shapes"
    ),
    "ILogger": "ERROR INFO INTERNAL_ERROR VERBOSE WARNING",
    "INetworkDefinition": "get_input get_output num_inputs num_layers num_outputs",
    "IOptimizationProfile": "set_shape",
    "IProgressMonitor": "phase_finish phase_start step_complete",
    "ITensor": "dtype name shape",
    "MemoryPoolType": "WORKSPACE",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "OnnxParser": "get_error num_errors parse parse_from_file",
    "ParserError": "desc node_name node_operator",
    "Runtime": "deserialize_cuda_engine",
    "TensorIOMode": "INPUT",
}
# TensorRT only: RTX compiles on the user's machine, so there are no timings to keep.
TRT_ONLY = {
    "BuilderFlag": "VERSION_COMPATIBLE",  # NVIDIA: RTX's plans fit their own release only
    "HardwareCompatibilityLevel": "AMPERE_PLUS",
    "IBuilderConfig": (
        "create_timing_cache get_timing_cache hardware_compatibility_level set_timing_cache"
    ),
    "ITimingCache": "serialize",
}
RTX_ONLY = {
    "ComputeCapability": "SM75 SM80 SM86 SM89 SM120 SM121",
    "CudaGraphStrategy": "WHOLE_GRAPH_CAPTURE",
    "IBuilderConfig": "num_compute_capabilities set_compute_capability",
    "ICudaEngine": "create_runtime_config",
    "IRuntimeCache": "deserialize serialize",
    "IRuntimeConfig": (
        "create_runtime_cache cuda_graph_strategy set_execution_context_allocation_strategy "
        "set_runtime_cache"
    ),
}

_log = logging.getLogger(__name__)


def load_tensorrt(engine: str) -> Any:
    """Import the package of engine "trt" or "trt-rtx".

    Raises MissingError, with the command that helps, for a package that is absent, does not load,
    has a version that was never compared with our lists, or lacks a name in them.
    """
    flavor = FLAVORS[engine]
    package = flavor.replace("_", "-")  # as pip calls it
    try:
        module = importlib.import_module(flavor)
        if not hasattr(module, "Builder"):
            raise ImportError("it has no Builder")
    except (Exception, SystemExit) as e:  # a broken package may raise anything
        if isinstance(e, ModuleNotFoundError) and e.name == flavor:
            # The extra that installs an engine's package is called like the engine.
            install = f"{install_command(engine)}{_other(engine)}"
            raise MissingError(f"engine {engine} needs {flavor}: {install}") from e
        raise MissingError(
            f"engine {engine}: {flavor} is installed but does not load ("
            f"{_why_unloadable(flavor, e)}): pip install --force-reinstall {package} "
            "--extra-index-url https://pypi.nvidia.com"
        ) from e
    low, end = SUPPORTED[flavor]
    if not low <= version_of(module)[:2] < end:
        raise MissingError(
            f"{flavor} {module.__version__} is not known to this version of stan_infer, which "
            f'knows {low[0]}.{low[1]} up to {end[0]}.0: pip install "{package}<{end[0]}" (and at '
            f"least {low[0]})"
        )
    lacks = missing_names(module, engine)
    if lacks:
        raise MissingError(
            f"{flavor} {module.__version__} lacks {', '.join(lacks[:4])}, which stan_infer calls: "
            f"pip install --upgrade {package}"
        )
    return module


def version_of(module: Any) -> tuple[int, ...]:
    """ "10.16.1.11" -> (10, 16, 1, 11)."""
    return tuple(int(part) for part in str(module.__version__).split(".") if part.isdigit())


def used_names(engine: str) -> dict[str, set[str]]:
    """Class -> its members that we use with an engine's package."""
    extra = RTX_ONLY if engine == "trt-rtx" else TRT_ONLY
    classes = {*COMMON, *extra}
    return {c: {*COMMON.get(c, "").split(), *extra.get(c, "").split()} for c in classes}


def missing_names(module: Any, engine: str) -> list[str]:
    """Names that we use with this engine and that a module does not have."""
    found = []
    for name, members in sorted(used_names(engine).items()):
        found += [f"{name}.{m}" for m in sorted(members - set(dir(getattr(module, name, None))))]
    return found


@functools.cache
def message_log(module: Any) -> Any:
    """The log object that receives the messages of NVIDIA's library; one per process.

    (The library ignores a second one.) `errors` and `warnings` keep the last messages of those
    kinds, for error messages of ours. All messages go on to this file's logger.
    """

    # The base class comes from a package that is optional, so this class is made here.
    class MessageLog(module.ILogger):  # type: ignore[name-defined, misc]
        """Keeps errors and warnings, and passes every message on."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=100)
            self.warnings: deque[str] = deque(maxlen=1000)

        def log(self, severity: Any, message: str) -> None:
            """Take one message; called from NVIDIA's threads."""
            kinds = module.ILogger
            level = logging.INFO
            if severity in (kinds.ERROR, kinds.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == kinds.WARNING:
                self.warnings.append(message)
            else:
                level = logging.DEBUG
            _log.log(level, "%s", message)

    return MessageLog()


def reason(errors: list[str]) -> str:
    """The most useful of NVIDIA's error messages: the first that is not about a missing driver.

    Without a driver, every call logs that, even one that needs no driver.
    """
    telling = [e for e in errors if "cudaError 35" not in e] or errors
    text = " ".join((telling or ["no reason was logged"])[0].split())
    return text if len(text) <= 500 else f"{text[:500]} ..."


def _why_unloadable(flavor: str, error: BaseException) -> str:
    """Why an installed package does not load.

    Its library package ignores a library that does not load, and the bindings then report a file
    that does not exist. So each library is loaded here, to get the true reason.
    """
    spec = find_spec(f"{flavor}_libs")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("lib*.so*")):
            try:
                ctypes.CDLL(str(library))
            except OSError as e:
                return (
                    f"{str(e)[:300]}; give the process more memory; if it has enough, the file is "
                    "damaged"
                )
    return (
        f"{str(error)[:160]}; NVIDIA's libraries are missing, which the package on the public "
        "index fetches from NVIDIA's own index"
    )


def _other(engine: str) -> str:
    """A hint at the other TensorRT package, if that one is installed."""
    other = "trt" if engine == "trt-rtx" else "trt-rtx"
    here = find_spec(FLAVORS[other]) is not None
    return f" ({FLAVORS[other]} is installed: --engine {other})" if here else ""
