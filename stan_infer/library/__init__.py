"""Embed many videos, into a file or into a library that goes on after any stop.

Imports engines and video, and what lies below.
Start at `embeddings.embed_videos`, and at `embed_library.embed_library` and `store` for libraries.
"""
