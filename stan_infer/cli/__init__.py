"""The command line: a file per command, which parses options, calls a function and reports.

Imports every wing but network and kernels.
Start at `main`.
"""
