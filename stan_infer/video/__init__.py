"""From a video file to a clip: T frames, resized and cropped as the authors do.

Imports system.
Start at `clip.read_clip`.
"""
