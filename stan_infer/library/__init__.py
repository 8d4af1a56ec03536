"""Embed many videos.

Imports engines and video, and what lies below.
Start at `embed.embed_videos`.
"""
