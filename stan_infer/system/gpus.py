"""The NVIDIA GPUs that CUDA shows to this process; only the driver is needed."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_CUDA = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...


def nvidia_gpus() -> list[dict[str, str]]:
    """Return each GPU's name, sm ("sm_89") and driver, as CUDA_VISIBLE_DEVICES orders them.

    The list is empty without a driver. Torch and TensorRT number the devices in the same order.
    """
    cuda = _load(_CUDA)
    count = ctypes.c_int()
    if cuda is None or cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    driver = _driver_version()
    return [_describe(cuda, i, driver) for i in range(count.value)]


def _describe(cuda: Any, i: int, driver: str) -> dict[str, str]:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), i)
    cuda.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(str(value.value))
    text = name.value.decode("utf-8", "replace")
    return {"name": text, "sm": f"sm_{''.join(numbers)}", "driver": driver}


def _driver_version() -> str:
    """Return it as "580.65.06", or "unknown" where NVML is not installed."""
    nvml, text = _load(_NVML), ctypes.create_string_buffer(96)
    if nvml is None or nvml.nvmlInit_v2():
        return "unknown"
    try:
        failed = nvml.nvmlSystemGetDriverVersion(text, len(text))
    finally:
        nvml.nvmlShutdown()
    return "unknown" if failed else text.value.decode("ascii", "replace")


def _load(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
