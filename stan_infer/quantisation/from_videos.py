"""calibrate with its options as keywords: `stan-infer calibrate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stan_infer.checkpoints.load import require_torch
from stan_infer.quantisation.calibration import Calibration
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.system.packages import is_installed, require
from stan_infer.system.result import Say, silent


def calibrate(
    source: str | Path,
    videos: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    say: Say = silent,
    progress: Callable[[str, int], Callable[[], None]] = lambda title, total: lambda: None,
    **options: Any,
) -> Calibration:
    """Quantise the video tower of a model on real videos and write it to the folder `out`.

    A stopped run goes on from the ranges in OUT.calibrating.npz.

    Args:
        source: a folder exported in fp32, or a checkpoint, which is exported first.
        videos: a folder, a file with their paths, or the files; like those that will be embedded.
            A quarter of them, at least 8, checks the bound: 16 or more are needed.
        out: the folder to write; an earlier one is replaced.
        say: called with a sentence about what is being done.
        progress: called with a step's title and its number of ticks; returns what is called per
            tick.
        options: the fields of CalibrationOptions: precision ("int8" or "fp8"), method, percentile,
            samples, seed, smooth, force, min_cosine, max_drop, metric, labels, settings, workers,
            timeout_s, threads.

    Returns:
        Calibration: its str() is the verdict; record and failed.

    Raises:
        InputError: videos, a model or options that cannot be used.
        CheckError: the bound cannot be met, or 8 bits are not faster here (unless `force`).
        MissingError: a package is not here.

    Example:
        >>> import stan_infer as si
        >>> clip = "examples/motion/clips/green_bar_grows.mp4"
        >>> try:
        ...     si.calibrate("examples/motion/motion.safetensors", [clip], "int8")
        ... except si.InputError as error:
        ...     print("1 video is too few" if "16" in str(error) else error)
        1 video is too few
    """
    if options.get("labels") is not None:
        options["labels"] = Path(options["labels"])
    chosen = CalibrationOptions(**options)
    if not is_installed("torch"):  # else it is imported while clips are decoded
        require_torch("calibrating", "cpu", str(source), chosen.settings)
    for module in ("onnx", "onnxruntime"):
        require(module, "calibrating", "cpu")
    from stan_infer.quantisation.calibrate import calibrate as quantise

    given = videos if isinstance(videos, (str, Path)) else [Path(video) for video in videos]
    return quantise(source, given, out, chosen, say=say, progress=progress)
