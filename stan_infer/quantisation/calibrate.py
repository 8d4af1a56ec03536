"""A model in fp32 and videos -> a folder in 8 bits that keeps a bound, or the reason why not.

In this order: the strength of smoothing is chosen for each linear; the ranges of the linears'
inputs are measured on real clips; each linear is tried alone in 8 bits; those that cost most return
to fp32 until the bound holds; speed is measured; a verdict says in one sentence what came out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from stan_infer.artefacts.folder import read_artefact, why_keep
from stan_infer.checkpoints.hub import located
from stan_infer.checkpoints.load import require_torch
from stan_infer.errors import CheckError, InputError
from stan_infer.quantisation.bound import read_bound
from stan_infer.quantisation.calibration import Calibration
from stan_infer.quantisation.hold_out import divide, too_few
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.quantisation.sentence import label_remarks
from stan_infer.quantisation.source import (
    check_runnable,
    check_source,
    exported_fp32,
    named_videos,
)
from stan_infer.quantisation.state import check_state, remove_state
from stan_infer.system.atomic import Sources, check_folder, files_of
from stan_infer.system.packages import require
from stan_infer.video.decode_pool import early_clips
from stan_infer.video.decode_worker import early_workers
from stan_infer.video.spec import ClipSpec

Say = Callable[[str], None]
Progress = Callable[[str, int], Callable[[], None]]


def calibrate(
    source: str | Path,
    videos: str | Path | Sequence[Path],
    out: str | Path,
    options: CalibrationOptions | None = None,
    *,
    say: Say = lambda text: None,
    progress: Progress = lambda title, total: lambda: None,
) -> Calibration:
    """Quantise the video tower of a model on real videos and write it to the folder `out`.

    source: a folder exported in fp32, or a checkpoint, which is exported first. videos: a folder, a
    file with their paths, or the files; like those that will be embedded. options: also the bound.
    progress: called with a step's title and its number of ticks; returns what is called per tick.

    A stopped run goes on from the ranges in OUT.calibrating.npz, which stay until the folder is
    written or the run has ended with a verdict; what comes after them is done again.

    Raises InputError for videos or a model that cannot be used, CheckError where the bound cannot
    be met or 8 bits are not faster here (unless options.force).
    """
    require("matplotlib", "calibrating", "report")  # draws its plot at the end
    source, out, options = str(located(source)), Path(out), options or CalibrationOptions()
    if not os.path.exists(source) and ":" not in source:
        raise InputError(f"{source}: no such file or folder; check the spelling")
    paths, root = named_videos(videos)
    labels = [options.labels] if options.labels is not None else []
    state = _check_out(out, [*files_of(source), *labels, *paths])
    bound = read_bound(options, root)
    check_source(source, options.settings, bound, options.precision)
    parts = divide(paths, options, bound.paths)
    if parts.copies:
        say(f"copies of other videos, which count once: {parts.copies}")
    if not parts.is_checked and not options.force:
        raise too_few(parts.why)
    if len(parts.ranged) < options.samples:
        say(f"{len(parts.ranged)} videos set the ranges; up to {options.samples} would (--samples)")
    remarks = label_remarks(bound.on(parts), bound, parts.double)
    bound = bound.on(parts)
    workers = early_workers(options.workers, len(paths))
    with workers, exported_fp32(source, options.settings, say) as folder:
        artefact = read_artefact(folder)
        check_runnable(artefact, bound, options.precision)
        spec, first = ClipSpec.of(artefact.config), parts.first(options.samples, bound.task is None)
        limit, count = options.timeout_s, options.workers
        with early_clips(first, spec, workers=count, timeout_s=limit):
            # Not earlier: importing torch takes a second, in which clips are decoded.
            require_torch("calibrating", "cpu", source, options.settings)
            from stan_infer.export.read_weights import read_weights
            from stan_infer.quantisation.work import Work

            weights = read_weights(artefact)
            work = Work(artefact, weights, options, bound, parts, remarks, root, say, progress)
            try:
                result = work.run(out, state)
            except CheckError:
                remove_state(state)  # the run has ended: nothing goes on from its state
                raise
    remove_state(state)
    return result


def _check_out(out: Path, sources: Sources) -> Path:
    """Return the file of the state, from which a stopped run goes on.

    sources: what is read. Raises InputError where the result or the state could not be written.
    """
    check_folder(out, why_keep, sources=sources)
    absolute = Path(os.path.abspath(out))
    state = absolute.with_name(f"{absolute.name}.calibrating.npz")
    if absolute.parent.is_dir():  # else it is made, and nothing lies in it
        check_state(state)
    return state
