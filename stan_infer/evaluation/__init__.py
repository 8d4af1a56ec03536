"""The figures of the paper: data sets, metrics of retrieval and recognition, a feature cache.

Imports library and engines.
Start at `from_files.evaluate`.
"""
