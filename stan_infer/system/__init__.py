"""What the machine gives: files that appear whole, temporary ones, child processes, signals.

Imports errors only.
Start at `atomic`, which writes every result.
"""
