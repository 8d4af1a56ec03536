"""Files that appear whole, temporary ones, strangers' files, child processes, signals, charts.

Imports errors only.
Start at `atomic`, which writes every result.
"""
