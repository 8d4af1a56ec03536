"""Watch a video, a camera or a stream for texts: scores of windows that slide, and events.

Imports library, engines and video, and what lies below.
Start at `watch.Watch`; `events` says when a text's event begins and ends.
"""
