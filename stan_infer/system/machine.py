"""The machine: its hardware, the versions of installed packages, memory used, CPUs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from stan_infer.errors import InputError
from stan_infer.system.cpu_use import quota_cpus

_PACKAGES = (
    "numpy",
    "typer",
    "safetensors",
    "torch",
    "open_clip_torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "av",
    "decord",
    "opencv-python-headless",
    "tokenizers",
    "ftfy",
    "triton",
    "tensorrt",
    "tensorrt-rtx",
    "openvino",
)

# As Linux spells them: x86, then ARM.
_INSTRUCTION_SETS = (
    *("avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve"),
)

# What tells processors of one name apart; x86, then ARM.
_CPU_IDS = {"cpu family": "family", "model": "model", "CPU implementer": "implementer"}
_CPU_IDS |= {"CPU part": "part"}


def machine_record() -> dict[str, Any]:
    """Describe the machine: processor, instruction sets, cores, memory in GiB, system, Python."""
    return {
        "cpu": _cpu(),
        "instruction_sets": _instruction_sets(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def peak_mib() -> float | None:
    """Peak memory of this process in MiB, None where the system does not give it."""
    # On Linux ru_maxrss keeps a parent's peak across fork and exec; VmHWM does not.
    with suppress(OSError), open("/proc/self/status") as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def installed_versions(names: Sequence[str] = _PACKAGES) -> dict[str, str | None]:
    """Version of every package that matters, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def faults(versions: dict[str, str | None]) -> list[str]:
    """Return the faults of what is installed, each with the command that repairs it."""
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        return [
            "onnxruntime and onnxruntime-gpu are both installed and own the same folder: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        ]
    return []


def _cpu() -> str:
    """The processor's name, on Linux with family and model.

    Virtual machines give processors of different years one name, such as "AMD EPYC".
    """
    fields = _cpu_fields()
    name = fields.get("model name") or platform.processor() or platform.machine()
    known = [f"{word} {fields[key]}" for key, word in _CPU_IDS.items() if fields.get(key)]
    return f"{name} ({', '.join(known)})" if known else name


def _cpu_fields() -> dict[str, str]:
    """What Linux says of the first processor; empty on other systems."""
    fields: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo") as f:
        for line in f:
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


def _instruction_sets() -> list[str]:
    """Instruction sets of this CPU that decide how fast a number format is (Linux only)."""
    fields = _cpu_fields()
    found = set((fields.get("flags") or fields.get("Features") or "").split())
    return [name for name in _INSTRUCTION_SETS if name in found]


def _memory_gib() -> float | None:
    if sys.platform == "win32" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


@contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Keep this thread, and those that it starts inside the block, on `threads` CPUs.

    Yields their numbers, or None where the system has no such call. CPUs of different cores are
    taken first. Raises InputError if the process may use fewer.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    if threads > len(allowed):
        raise InputError(f"--threads {threads}: this process may use {len(allowed)} CPUs")
    chosen = sorted(sorted(allowed, key=lambda cpu: (_sibling_rank(cpu), cpu))[:threads])
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)


def cpus_of_this_process() -> list[int] | None:
    """The numbers of the CPUs that it may use; None where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def usable_cpus() -> int:
    """How many CPUs this process may use: no more than a container's quota, rounded down, but one.

    With more threads than that, all of them are stopped for a part of every tenth of a second.
    """
    allowed = cpus_of_this_process()
    count = len(allowed) if allowed else os.cpu_count() or 1
    quota = quota_cpus()
    return count if quota is None else max(1, min(count, int(quota)))


def _sibling_rank(cpu: int) -> int:
    """0 for the first hardware thread of a core, 1 for the second, ..."""
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as f:
            text = f.read()
        first = [int(part.split("-")[0]) for part in text.strip().split(",")]
        return 0 if cpu == min(first) else 1
    except (OSError, ValueError):
        return 0
