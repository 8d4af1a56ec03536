"""Timing engines against each other, interleaved, and the report page.

Imports export and engines, and what lies below.
Start at `run.bench`.
"""
