"""Measure the peak memory of one engine in a process of its own.

Engines in one process share its peak, so each is opened once more alone, by
`python -m stan_infer.benchmarking.memory`. The request is one JSON object on standard input, the
answer one on standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.engines.open import CHECKPOINT, engine_named
from stan_infer.system.child import how_it_ended, python, run_child
from stan_infer.system.machine import peak_mib

_COMMAND = python("stan_infer.benchmarking.memory")


def peak_memory(
    origin: Mapping[str, Any], *, threads: int, batch: int, frames: int, side: int
) -> dict[str, Any]:
    """Open the engine of `origin` in a child process, embed one batch, return the peak memory.

    origin: engine, precision, device, and source (checkpoint, folder or graph) or preset; settings,
    calibration. Returns peak_host_mib (resident, with interpreter and libraries), peak_device_mib
    (None on a CPU) and memory_shape [B, T]. If the child failed, as when memory ran out, the peaks
    are None and memory_error says why.
    """
    request = {**origin, "threads": threads, "batch": batch, "frames": frames, "side": side}
    answers: list[dict[str, Any]] = []
    ended = run_child(_COMMAND, request, answers.append)
    if ended.code == 0 and answers:
        return {**answers[-1], "memory_shape": [batch, frames]}
    last = (ended.errors.strip().splitlines() or ["no reason given"])[-1]
    reason = f"killed by {how_it_ended(ended.code)}" if ended.code < 0 else last[:200]
    return {"peak_host_mib": None, "peak_device_mib": None, "memory_error": reason}


def add_peaks(
    rows: Iterable[dict[str, Any]], facts: Mapping[str, Any], took: Mapping[str, Any]
) -> None:
    """Add what peak_memory returned to the rows of the candidate with these facts."""
    for row in rows:
        if all(row[k] == facts[k] for k in ("engine", "precision")):
            row |= took


def main() -> None:
    """Answer the request on standard input, in the child process."""
    request = json.load(sys.stdin)
    before = _in_use(request)
    s = request["side"]
    clips = np.zeros((request["batch"], request["frames"], s, s, 3), np.uint8)
    if engine_named(request["engine"]).takes == CHECKPOINT:
        import torch

        torch.set_num_threads(request["threads"])
    _run(request, clips)
    device = None if before is None else _device_mib(request, before)
    print(json.dumps({"peak_host_mib": peak_mib(), "peak_device_mib": device}))


def _run(request: dict[str, Any], clips: np.ndarray) -> None:
    from stan_infer.engines.open import open_session

    source = request.get("source")
    if source is not None and source.endswith(".onnx"):
        from stan_infer.benchmarking.candidates import open_onnx

        candidates = open_onnx(
            Path(source),
            engines=[request["engine"]],
            device=request["device"],
            threads=request["threads"],
        )
        candidates.opened[0].embed(clips)
        return
    opened: Any = source
    if source is None:
        from stan_infer.checkpoints.openclip import named_config
        from stan_infer.network.model import Stan, init_random

        opened = init_random(Stan(named_config(request["preset"], request["settings"]))).eval()
    session = open_session(
        opened,
        request["engine"],
        device=request["device"],
        precision=request["precision"],
        settings=request["settings"] if source is not None and "settings" in request else None,
        threads=request["threads"],
        calibration=request.get("calibration"),
    )
    opened = None  # the session may hold the weights in another form
    session.embed_video(clips)


def _in_use(request: dict[str, Any]) -> int | None:
    """Bytes in use on the GPU by all processes and CUDA contexts; None for a CPU."""
    if not str(request.get("device") or "cpu").startswith("cuda"):
        return None
    import torch

    free, total = torch.cuda.mem_get_info(request["device"])
    return total - free


def _device_mib(request: dict[str, Any], before: int) -> float:
    """Peak of torch's memory, or growth of the GPU's memory in use (other libraries), if larger."""
    import torch

    after = _in_use(request)
    assert after is not None
    own = torch.cuda.max_memory_allocated(request["device"])
    return max(own, after - before) / 2**20


if __name__ == "__main__":
    main()
