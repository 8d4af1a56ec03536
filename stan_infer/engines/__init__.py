"""Ways to run a model: a session each, and the table that opens them by name.

Imports checkpoints, tensorrt_plans and what lies below.
Start at `open.open_session`.
"""
