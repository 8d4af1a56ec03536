"""TensorRT's plans: building, reading and checking them, and known faults of TensorRT's versions.

Imports artefacts and system.
Start at `build.build_plans`.
"""
