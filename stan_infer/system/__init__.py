"""Files that appear whole, temporary ones, reading of strangers' files, child processes, signals.

Imports errors only.
Start at `atomic`, which writes every result.
"""
