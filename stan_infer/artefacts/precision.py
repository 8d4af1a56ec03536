"""Number formats of graphs: which come from a calibration, and how far outputs may differ."""

from __future__ import annotations

# Largest difference of an output relative to the largest value. fp32 graphs measure 1e-6, fp16
# 1e-3, bf16 1e-2 on random weights; ten times that still tells a wrong graph from rounding.
# 8 bits measure 3e-2 without outlier channels against fp32; what they cost is judged by
# `calibrate`, on a task. Two engines on the same 8 bits differ as a sum that differs in its last
# bit may be rounded to the next of 255 levels: B/32 measures 1e-2, 0.1 with outlier channels.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1, "int8": 0.25, "fp8": 0.25}
EIGHT_BITS = ("int8", "fp8")  # precisions that come from a calibration
