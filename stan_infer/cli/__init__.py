"""The command line: one file per command; it parses, calls one function and reports.

Imports every wing but network and kernels.
Start at `main`.
"""
