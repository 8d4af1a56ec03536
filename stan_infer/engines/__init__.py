"""Ways to run a model: open_session picks one by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.errors import InputError, nearest, require

if TYPE_CHECKING:
    from stan_infer.engines.session import Session
    from stan_infer.model import Stan

ENGINES = ("eager", "compile", "triton", "ort", "openvino")


def check_engine(engine: str) -> None:
    """Refuse an unknown engine with the nearest name."""
    if engine not in ENGINES:
        raise InputError(
            f"engine '{engine}' is unknown{nearest(engine, ENGINES)} ({', '.join(ENGINES)})"
        )


def open_session(
    source: str | Path | Stan,
    engine: str | None = None,
    *,
    device: str = "cpu",
    precision: str | None = None,
    settings: Mapping[str, Any] | None = None,
    threads: int | None = None,
    graph: str = "reference",
    scales: Mapping[str, float] | None = None,
) -> Session:
    """Open a model for inference.

    engine: None is "ort" for an exported folder, "eager" for anything else; describe() tells.
    "compile" is eager under torch.compile: the first run of a shape takes as long as compiling it.
    "triton" runs our kernels on an NVIDIA GPU. source: for these three a checkpoint, an open_clip
    name and tag, or a loaded Stan; for "ort" and "openvino" an exported folder. precision: of
    weights and products; None is fp32 for a checkpoint (fp16 for "triton") and what was exported
    for a folder; "openvino" also runs an fp32 folder in bf16, where the CPU has it. graph: of
    "eager" and "compile", the "reference" or the "fused" rewritten one. scales: see TritonSession.
    settings: StanConfig fields that a checkpoint's shapes cannot tell. threads: CPU threads of
    "ort" and "openvino" (torch: torch.set_num_threads, which belongs to the process).

    What was asked for runs or an error says why not: InputError for a wrong source or word,
    MissingError for a package or device that is not here.
    """
    is_folder = isinstance(source, (str, Path)) and os.path.isdir(source)
    engine = engine or ("ort" if is_folder else "eager")
    check_engine(engine)
    if graph != "reference" and engine not in ("eager", "compile"):
        raise InputError(f"graph '{graph}' is a choice of engines eager and compile, not {engine}")
    if scales is not None and engine != "triton":
        raise InputError(f"activation scales belong to engine triton, not {engine}")
    if engine in ("eager", "compile", "triton"):
        if is_folder:
            raise InputError(
                f"{source} is a folder; engine {engine} takes a checkpoint: "
                "give the checkpoint file, or --engine ort or openvino"
            )
        require("torch", f"engine {engine}", "stan-infer[cpu]")
        if engine == "triton":
            return _open_triton(source, device, precision, scales, settings)
        from stan_infer.checkpoint import load_model
        from stan_infer.engines.torch_session import TorchSession

        model = load_model(source, settings) if isinstance(source, (str, Path)) else source
        return TorchSession(
            model,
            device=device,
            precision=precision or "fp32",
            compiled=engine == "compile",
            graph=graph,
        )
    if not is_folder:
        name = source if isinstance(source, (str, Path)) else "CHECKPOINT"
        raise InputError(
            f"engine {engine} takes an exported folder, not {name}: "
            f"stan-infer export {name} -o FOLDER, then give FOLDER"
        )
    if settings:
        raise InputError("settings belong to a checkpoint; a folder was exported with its own")
    from stan_infer.artefact import read_artefact

    assert isinstance(source, (str, Path))
    artefact = read_artefact(source)
    if engine == "openvino":
        from stan_infer.engines.ov_session import OvSession

        return OvSession(artefact, device=device, precision=precision, threads=threads)
    from stan_infer.engines.ort_session import OrtSession

    return OrtSession(artefact, device=device, precision=precision, threads=threads)


def _open_triton(
    source: str | Path | Stan,
    device: str,
    precision: str | None,
    scales: Mapping[str, float] | None,
    settings: Mapping[str, Any] | None,
) -> Session:
    from stan_infer.checkpoint import load_model
    from stan_infer.engines.triton_session import TritonSession, check_here

    check_here(device)  # before a large file is read for nothing
    model = load_model(source, settings) if isinstance(source, (str, Path)) else source
    return TritonSession(model, device=device, precision=precision or "fp16", scales=scales)
