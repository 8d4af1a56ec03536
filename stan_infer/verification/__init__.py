"""Are two models (checkpoint, exported folder, graph or plan) the same, and where do they differ?

Imports export, which writes the graphs that should be there, and what lies below.
Start at `verification.verify`.
"""
