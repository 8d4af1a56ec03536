"""CLIP's tokenizer and its vocabulary.

Imports system.
Start at `tokenizer.tokenize`.
"""
