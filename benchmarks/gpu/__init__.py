"""Kernels and networks on a GPU: start with python -m benchmarks.gpu.suite."""
