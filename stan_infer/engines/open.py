"""Ways to run a model: open_session picks one by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.errors import InputError, MissingError, check_word
from stan_infer.system.packages import require

if TYPE_CHECKING:
    from stan_infer.artefacts.folder import Artefact
    from stan_infer.engines.session import Session
    from stan_infer.network.model import Stan

ENGINES = ("eager", "compile", "triton", "ort", "openvino", "trt", "trt-rtx")
GPU_ENGINES = ("triton", "trt", "trt-rtx")  # they run on NVIDIA GPUs, and nowhere else


def check_engine(engine: str) -> None:
    """Refuse an unknown engine with the nearest name."""
    check_word("engine", engine, ENGINES)


def open_session(
    source: str | Path | Stan,
    engine: str | None = None,
    *,
    device: str | None = None,
    precision: str | None = None,
    settings: Mapping[str, Any] | None = None,
    threads: int | None = None,
    graph: str = "reference",
    scales: Mapping[str, float] | None = None,
    calibration: str | Path | None = None,
    auto_rebuild: bool = False,
    provider: str | None = None,
) -> Session:
    """Open a model for inference.

    source: a checkpoint, an open_clip name and tag or a loaded Stan for "eager", "compile" and
    "triton"; an exported folder for the others, or a .plan in one.
    engine: None is "ort" for a folder, a plan's own, "eager" for anything else; describe() tells.
    "compile" is eager under torch.compile: the first run of a shape takes as long as compiling it.
    "triton" runs our kernels, "trt" and "trt-rtx" the plans of a folder, all on an NVIDIA GPU.
    device: "cpu", "cuda", "cuda:1"; None is what engine and provider run on, or the CPU.
    precision: of weights and products; None is fp32 for a checkpoint (fp16 for "triton") and what
    was exported for a folder; "openvino" also runs an fp32 folder in bf16, where the CPU has it.
    settings: StanConfig fields that a checkpoint's shapes cannot tell.
    threads: CPU threads of "ort" and "openvino" (torch: torch.set_num_threads, which belongs to
    the process).
    graph: of "eager" and "compile", the "reference" or the "fused" rewritten one.
    calibration: of "triton" in fp8, the calibration.json of this checkpoint or its folder; scales:
    the same as numbers by name, see TritonSession.
    auto_rebuild: of plans: build those of another version or GPU again, which takes minutes.
    provider: of "ort": cpu, cuda (the device's own), cuda-graph, tensorrt, tensorrt-rtx.

    What was asked for runs or an error says why not: InputError for a wrong source or word,
    MissingError for a package or device that is not here.
    """
    if isinstance(source, (str, Path)) and str(source).endswith(".plan"):
        if provider is not None:
            raise InputError(f"provider {provider} is a choice of engine ort; {source} is a plan")
        device = "cuda" if device is None else device
        return _open_plan(Path(source), engine, device, precision, settings, auto_rebuild)
    is_folder = isinstance(source, (str, Path)) and os.path.isdir(source)
    if provider is not None and (engine or ("ort" if is_folder else "eager")) != "ort":
        raise InputError(f"provider {provider} is a choice of engine ort, not {engine or 'eager'}")
    engine = engine or ("ort" if is_folder else "eager")
    check_engine(engine)
    if device is None:
        on_gpu = engine in GPU_ENGINES or provider not in (None, "cpu")
        device = "cuda" if on_gpu else "cpu"
    if graph != "reference" and engine not in ("eager", "compile"):
        raise InputError(f"graph '{graph}' is a choice of engines eager and compile, not {engine}")
    if (scales is not None or calibration is not None) and engine != "triton":
        raise InputError(
            f"a calibration is given to engine triton, not {engine}: a folder in 8 bits has its own"
        )
    if engine in ("eager", "compile", "triton"):
        if is_folder:
            raise InputError(
                f"{source} is a folder; engine {engine} takes a checkpoint: "
                "give the checkpoint file, or --engine ort or openvino"
            )
        from stan_infer.checkpoints.load import load_model, require_torch

        extra = "gpu" if engine == "triton" else "cpu"
        require_torch(f"engine {engine}", extra, source, settings)
        if engine == "triton":
            return _open_triton(source, device, precision, scales, calibration, settings)
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
    from stan_infer.artefacts.folder import read_artefact

    assert isinstance(source, (str, Path))
    artefact = read_artefact(source, held=() if engine in GPU_ENGINES else ("video", "text"))
    if engine in ("trt", "trt-rtx"):
        return _open_trt(artefact, engine, device, precision, None, auto_rebuild)
    if engine == "openvino":
        from stan_infer.engines.ov_session import OvSession

        return OvSession(artefact, device=device, precision=precision, threads=threads)
    from stan_infer.engines.ort_session import OrtSession

    return OrtSession(
        artefact, device=device, precision=precision, threads=threads, provider=provider
    )


def _open_triton(
    source: str | Path | Stan,
    device: str,
    precision: str | None,
    scales: Mapping[str, float] | None,
    calibration: str | Path | None,
    settings: Mapping[str, Any] | None,
) -> Session:
    from stan_infer.artefacts.calibration_file import fp8_scales, read_calibration
    from stan_infer.checkpoints.load import load_model
    from stan_infer.engines.triton_session import TritonSession, check_here

    if calibration is not None:
        if scales is not None:
            raise InputError("give a calibration or its scales, not both")
        read_calibration(calibration)  # a bad file is told before a large one is read
    check_here(device)
    model = load_model(source, settings) if isinstance(source, (str, Path)) else source
    if calibration is not None:
        if not isinstance(source, (str, Path)):
            raise InputError("a calibration is compared with a checkpoint's file: give its path")
        scales = fp8_scales(calibration, source, model.config)
    return TritonSession(
        model,
        device=device,
        precision=precision or ("fp16" if scales is None else "fp8"),
        scales=scales,
    )


def _open_plan(
    path: Path,
    engine: str | None,
    device: str,
    precision: str | None,
    settings: Mapping[str, Any] | None,
    auto_rebuild: bool,
) -> Session:
    from stan_infer.artefacts.folder import read_artefact
    from stan_infer.tensorrt_plans.plan_file import read_plan

    if settings:
        raise InputError("settings belong to a checkpoint; a plan was built with its own")
    plan = read_plan(path, check_hash=False)
    if engine not in (None, plan.engine):
        raise InputError(f"{path} is a plan of engine {plan.engine}, not {engine}")
    if plan.role not in ("video", "text"):
        raise InputError(
            f"{path} is a plan of the {plan.role} graph; engines run those of video and text, and "
            "this one is for programs of your own"
        )
    folder = path.absolute().parent.parent
    if not os.path.isfile(folder / "manifest.json"):
        raise InputError(
            f"{path} does not lie in engines/ of an exported folder, which holds its config and "
            "vocabulary: copy the whole folder"
        )
    return _open_trt(read_artefact(folder), plan.engine, device, precision, path, auto_rebuild)


def _open_trt(
    artefact: Artefact,
    engine: str,
    device: str,
    precision: str | None,
    plan: Path | None,
    auto_rebuild: bool,
) -> Session:
    try:
        require("torch", f"engine {engine}", "gpu")
        from stan_infer.engines.trt_session import TrtRtxSession, TrtSession

        kind = TrtSession if engine == "trt" else TrtRtxSession
        return kind(
            artefact, device=device, precision=precision, plan=plan, auto_rebuild=auto_rebuild
        )
    except MissingError:
        from stan_infer.tensorrt_plans.plan_file import check_plans, read_plan

        # A plan that was changed is told before what is missing to run it.
        check_plans(artefact, engine, read_plan(plan, check_hash=False) if plan else None)
        raise
