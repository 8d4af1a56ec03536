"""Number formats of graphs: how far outputs may differ, and which formats need a calibration."""

from __future__ import annotations

from collections.abc import Iterable

from stan_infer.errors import InputError, nearest

# Largest difference of an output, divided by the largest value. On random weights, fp32 graphs
# measure 1e-6, fp16 1e-3 and bf16 1e-2; ten times that is still below the error of a wrong graph.
# Graphs in 8 bits measure 3e-2 against fp32, without outlier channels; `calibrate` judges on a task
# what that costs. Two engines with the same 8 bits differ because sums that differ in the last bit
# may be rounded to different ones of 255 levels: B/32 measures 1e-2, and 0.1 with outlier channels.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1, "int8": 0.25, "fp8": 0.25}
EIGHT_BITS = ("int8", "fp8")  # precisions that come from a calibration


def check_precision(who: str, precision: str, known: Iterable[str], more: str = "") -> None:
    """Raise InputError for a precision that `who` lacks; of 8 bits, with what makes them."""
    words = list(known)
    if precision in words:
        return
    if precision in EIGHT_BITS:
        raise InputError(
            f"{who} has no precision '{precision}', which comes from a calibration: stan-infer "
            f"calibrate CKPT_OR_DIR --precision {precision} --videos DIR -o OUT{more}"
        )
    near = nearest(precision, words)
    raise InputError(f"{who} has no precision '{precision}'{near} ({', '.join(words)}){more}")
