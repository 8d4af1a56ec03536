"""What the machine gives: files that appear whole, temporary ones, signals, GPUs, packages.

Imports errors and config only.
Start at `atomic`, which writes every result.
"""
