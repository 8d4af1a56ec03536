"""Quantisation to 8 bits on real videos: ranges, scales, their cost, and a verdict.

Imports evaluation, benchmarking and export, and what lies below.
Start at `from_videos.calibrate`.
"""
