"""Embeddings of many videos.

Imports engines and video.
Start at `embed.embed_videos`.
"""
