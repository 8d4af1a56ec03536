"""Measurements of speed and memory: run with python -m benchmarks.NAME. Not installed."""
