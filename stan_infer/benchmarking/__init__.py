"""Time engines in turn in one process, and write the report page.

Imports export and engines, and what lies below.
Start at `run.bench`.
"""
