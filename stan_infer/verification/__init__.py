"""Are two sources (checkpoint, folder, graph, plan) the same model, and where do they part?

Imports engines and what lies below.
Start at `verify.verify`.
"""
