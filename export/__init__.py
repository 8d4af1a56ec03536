"""Exporters: they write a Stan as a folder that runs without torch.

Imports engines, which run the written graphs to check them, and what lies below.
Start at `export_model.export_model`.
"""
