"""From a checkpoint file to a model: recognise its layout, read its config and its weights.

Imports network and system.
Start at `load.load_model`.
"""
