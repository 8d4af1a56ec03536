"""Fused GPU kernels in Triton, one operation per file, each a torch custom operation.

Imports nothing of ours; on the CPU every operation runs its plain torch form, so that a model with
them can be traced and exported anywhere. Start at `temporal_attention`.
"""
