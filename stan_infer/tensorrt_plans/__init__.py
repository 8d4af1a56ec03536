"""TensorRT's plans: their files, how they are built, faults of its versions.

Imports artefacts and system.
Start at `build.build_plans`.
"""
