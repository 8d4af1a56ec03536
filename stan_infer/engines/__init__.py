"""The engines that run a model: a session for each, and the table that opens them by name.

Imports checkpoints, tensorrt_plans and the wings below.
Start at `open.open_session`.
"""
