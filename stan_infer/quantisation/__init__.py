"""Eight bits on real videos: ranges, scales, what they cost, and the verdict.

Imports evaluation, benchmarking and export, and what lies below.
Start at `calibrate.calibrate`.
"""
