"""What is installed and what hardware is here, found by trying, as plain dicts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError

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

# An ONNX model of one Identity node, float[1] x -> y, opset 20, IR 10: enough to see which provider
# really opens a session, on a machine that has neither onnx nor torch.
_IDENTITY = bytes.fromhex(
    "080a3a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a001014"
)


def machine_record() -> dict[str, Any]:
    """The machine in words: processor, what it can, cores, memory in GiB, system, Python."""
    return {
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "instruction_sets": _instruction_sets(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def peak_mib() -> float | None:
    """MiB that this process held in memory at most, None where the system does not tell."""
    # Linux keeps a parent's peak in ru_maxrss across fork and exec; this figure is our own.
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
    """Installations that cannot work, each with the command that mends it."""
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        return [
            "onnxruntime and onnxruntime-gpu are both installed and own the same folder: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        ]
    return []


def try_engines() -> list[dict[str, Any]]:
    """Try every engine on every device: records with `works` and, if not, `reason` and `help`."""
    return [
        _try("eager", "cpu", lambda: _run_eager("cpu"), 'pip install "stan-infer[cpu]"'),
        _try("eager", "cuda", lambda: _run_eager("cuda"), 'pip install "stan-infer[gpu]"'),
        _try("triton", "cuda", _run_triton, 'pip install "stan-infer[gpu]", with an NVIDIA driver'),
        _try("ort", "cpu", lambda: _run_ort("cpu"), 'pip install "stan-infer[runtime]"'),
        _try("ort", "cuda", lambda: _run_ort("cuda"), 'pip install "stan-infer[gpu]"'),
        _try("trt", "cuda", lambda: _run_trt("trt"), 'pip install "stan-infer[trt]"'),
        _try("trt-rtx", "build", lambda: _build_rtx(), 'pip install "stan-infer[trt-rtx]"'),
        _try("trt-rtx", "cuda", lambda: _run_trt("trt-rtx"), "install the driver of an NVIDIA GPU"),
        _try("openvino", "cpu", lambda: _run_ov("cpu"), 'pip install "stan-infer[openvino]"'),
        _try("openvino", "gpu", lambda: _run_ov("gpu"), "install the driver of an Intel GPU"),
    ]


def try_decoders() -> list[dict[str, Any]]:
    """Try every video decoder, as try_engines does."""
    return [
        _try("pyav", "cpu", _run_pyav, 'pip install "stan-infer[runtime]"'),
        _try("decord", "cpu", lambda: __import__("decord"), "pip install decord"),
    ]


def _try(name: str, device: str, run: Callable[[], object], remedy: str) -> dict[str, Any]:
    record: dict[str, Any] = {"name": name, "device": device, "works": True}
    try:
        run()
    except Exception as e:
        # Whatever a broken installation raises is the finding.
        record |= {"works": False, "reason": str(e).split("\n")[0][:200], "help": remedy}
    return record


def _run_eager(device: str) -> None:
    from stan_infer.config import preset
    from stan_infer.errors import require

    torch = require("torch", "engine eager", "stan-infer[cpu]")
    from stan_infer.engines import open_session
    from stan_infer.model import Stan, init_random

    session = open_session(init_random(Stan(preset("stan-tiny"))), "eager", device=device)
    clip = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
    if not torch.isfinite(session.embed_video(clip)).all():
        raise RuntimeError("a tiny model returned values that are not finite")


def _run_triton() -> None:
    from stan_infer.config import preset
    from stan_infer.engines import open_session
    from stan_infer.errors import require

    torch = require("torch", "engine triton", "stan-infer[gpu]")
    from stan_infer.model import Stan, init_random

    session = open_session(init_random(Stan(preset("stan-tiny"))), "triton", device="cuda")
    clip = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
    if not torch.isfinite(session.embed_video(clip)).all():
        raise RuntimeError("a tiny model returned values that are not finite")


def _run_ort(device: str) -> None:
    import numpy as np

    from stan_infer.engines.ort_session import open_graph

    x = np.ones(1, dtype=np.float32)
    if open_graph(_IDENTITY, device=device).run(None, {"x": x})[0] != x:
        raise RuntimeError("an identity graph changed its input")


def _run_ov(device: str) -> None:
    import numpy as np

    from stan_infer.engines.ov_session import open_graph

    x = np.ones(1, dtype=np.float32)
    if open_graph(_IDENTITY, device=device)({"x": x})["y"] != x:
        raise RuntimeError("an identity graph changed its input")


def _build_rtx() -> None:
    """Build a plan of one node, as works without a GPU."""
    with tempfile.TemporaryDirectory(prefix="stan-infer-") as folder:
        _build_identity("trt-rtx", Path(folder))


def _build_identity(engine: str, folder: Path) -> Any:
    from stan_infer.export.build_plan import Job
    from stan_infer.export.to_tensorrt import run_job
    from stan_infer.plan_file import ENGINES, new_plan, read_plan
    from stan_infer.tensorrt_api import load_tensorrt

    load_tensorrt(engine)
    onnx, out = folder / "x.onnx", folder / "x.plan"
    onnx.write_bytes(_IDENTITY)
    words = {"flavor": ENGINES[engine], "role": "identity", "precision": "fp32"}
    with new_plan(out) as (plan, sidecar):
        job = Job(engine=engine, onnx=str(onnx), out=str(plan), profiles=[])
        sidecar |= {**words, **run_job(job, lambda part: None), "profiles": [{"x": [[1]] * 3}]}
    return read_plan(out)


def _run_trt(engine: str) -> None:
    import numpy as np

    from stan_infer.errors import MissingError, require
    from stan_infer.tensorrt_api import load_tensorrt

    module = load_tensorrt(engine)
    torch = require("torch", f"engine {engine}", "stan-infer[gpu]")
    if not torch.cuda.is_available():
        raise MissingError("torch finds no NVIDIA GPU")
    from stan_infer.engines.plan_graph import PlanGraph

    x = np.ones(1, dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="stan-infer-") as folder:
        plan = _build_identity(engine, Path(folder))
        graph = PlanGraph(plan, module, torch.device("cuda", 0), cuda_graphs=False)
        with closing(graph):
            if graph.run("y", {"x": x})[0] != x:
                raise RuntimeError("an identity graph changed its input")


def _run_pyav() -> None:
    import av

    av.CodecContext.create("h264", "r")


def _cpu_field(name: str) -> str:
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith(name):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def _instruction_sets() -> list[str]:
    """Of those that decide how fast a number format is, the ones this CPU has (Linux)."""
    found = set((_cpu_field("flags") or _cpu_field("Features")).split())
    return [name for name in _INSTRUCTION_SETS if name in found]


def _memory_gib() -> float | None:
    if sys.platform == "win32" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


@contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Keep this thread, and those that it starts inside the block, on `threads` CPUs.

    Yields their numbers, or None where the system has no such call. CPUs of different cores come
    first. Raises InputError if fewer are allowed.
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


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sibling_rank(cpu: int) -> int:
    """0 for the first hardware thread of a core, 1 for the second, ..."""
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as f:
            text = f.read()
        first = [int(part.split("-")[0]) for part in text.strip().split(",")]
        return 0 if cpu == min(first) else 1
    except (OSError, ValueError):
        return 0
