"""The transfer of a video in HDR, and the note about it."""

from __future__ import annotations

from pathlib import Path

TRANSFERS = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers (SMPTE ST 2084, ARIB STD-B67)


def hdr_note(path: Path, hdr: str | None) -> str | None:
    """The note about one clip, None if it is not in HDR."""
    if hdr is None:
        return None
    return f"note: {path} is HDR ({hdr}); its values are taken as they are stored"
