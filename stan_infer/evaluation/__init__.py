"""The paper's figures: data sets, retrieval and recognition metrics, kept features.

Imports library and engines.
Start at `evaluate.evaluate`.
"""
