"""From a checkpoint file to a model: whose layout it has, its config, its weights.

Imports network and system.
Start at `load.load_model`.
"""
