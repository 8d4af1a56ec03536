"""Eight bits on real videos: ranges, scales, what they cost, and the verdict.

Imports evaluation, benchmarking and export.
Start at `calibrate.calibrate`.
"""
