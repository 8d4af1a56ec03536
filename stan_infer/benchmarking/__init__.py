"""Timing engines against each other, interleaved, and the report page.

Imports export and engines.
Start at `run.bench`.
"""
