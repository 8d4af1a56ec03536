"""Timing engines against each other, interleaved, and the report page.

Imports export and engines.
Start at `interleave.bench_videos`.
"""
