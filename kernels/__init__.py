"""Fused GPU kernels, one operation per file. None yet: the table in README.md says what works."""
