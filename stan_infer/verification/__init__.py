"""Are two models (checkpoint, exported folder, graph or plan) the same, and where do they differ?

Imports engines and what lies below.
Start at `verify.verify`.
"""
