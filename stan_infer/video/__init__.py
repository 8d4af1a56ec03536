"""Read a clip from a video file: T frames, resized and cropped as the authors do.

Imports config and system.
Start at `clip.read_clip`; `spec.ClipSpec` is what every reader takes.
"""
