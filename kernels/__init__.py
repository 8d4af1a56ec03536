"""Fused GPU kernels in Triton, one operation per file, each a torch custom operation.

Imports nothing of ours. On a CPU each operation runs in plain torch, so that a model that uses it
can be traced and exported without a GPU. Start at `temporal_attention`.
"""
