"""Embed many videos.

Imports engines and video, and what lies below.
Start at `embeddings.embed_videos`.
"""
