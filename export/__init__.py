"""Exporters: a Stan in, a folder out that runs without torch.

Imports engines (its graphs are proved on them) and what lies below.
Start at `export_model.export_model`.
"""
