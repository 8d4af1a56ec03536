"""Number formats of graphs: how far outputs may differ, and which formats need a calibration."""

from __future__ import annotations

# Largest difference of an output, divided by the largest value. On random weights, fp32 graphs
# measure 1e-6, fp16 1e-3 and bf16 1e-2; ten times that is still below the error of a wrong graph.
# Graphs in 8 bits measure 3e-2 against fp32, without outlier channels; `calibrate` judges on a task
# what that costs. Two engines with the same 8 bits differ because sums that differ in the last bit
# may be rounded to different ones of 255 levels: B/32 measures 1e-2, and 0.1 with outlier channels.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1, "int8": 0.25, "fp8": 0.25}
EIGHT_BITS = ("int8", "fp8")  # precisions that come from a calibration
