"""How far apart in time the sampled frames of a long video lie, and the note about it."""

from __future__ import annotations

from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.video.pyav_reader import open_video

# Seconds. The models were trained on clips of some 10 to 180 s, with a second to 15 between two
# frames; within a minute whole actions pass that no frame shows.
LONG_S = 60.0
_FEW = 300  # frames between two sampled ones, which last less than LONG_S at 5 or more a second
_GUESSED = {"h264", "hevc", "m4v", "mpegvideo", "obu"}  # FFmpeg makes up the rate of bare streams


def seconds_between(path: Path, total: int, frames: int) -> float | None:
    """Return the mean time between two of the `frames` sampled of `total`, by the file's header.

    0 for a video with few frames between them, which is not opened. None: the times are not known.
    """
    if total < _FEW * frames:
        return 0.0
    try:
        with open_video(path) as (container, stream):
            if container.format.name in _GUESSED:
                return None
            seconds = 0.0
            if stream.duration and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
            elif container.duration:
                seconds = container.duration / 1e6
            elif stream.average_rate:
                seconds = total / float(stream.average_rate)
    except InputError:
        return None
    return seconds / frames if seconds > 0 else None


class Gaps:
    """Counts the clips of a run whose frames lie far apart, so that one note tells of all."""

    def __init__(self) -> None:
        """Start with no clip."""
        self._count, self._far, self._unknown = 0, 0, 0
        self._longest, self._name = 0.0, ""

    def add(self, path: Path, gap_s: float | None) -> None:
        """Count a clip, with what `seconds_between` returned for it."""
        self._count += 1
        self._unknown += gap_s is None
        self._far += gap_s is not None and gap_s > LONG_S
        if gap_s is not None and gap_s > self._longest:
            self._longest, self._name = gap_s, path.name

    def note(self, frames: int) -> str | None:
        """The note for a run with `frames` per clip, None if there is nothing to tell."""
        parts = []
        if self._far:
            parts.append(
                f"{self._far} of {self._count} videos: more than {LONG_S:g} s lie between two of "
                f"the {frames} frames that are looked at (about {self._longest:.0f} s in "
                f"{self._name}); what happens in between is not seen: cut long videos into parts"
            )
        if self._unknown:
            parts.append(
                f"{self._unknown} of {self._count} videos have more than {_FEW} frames between two "
                "that are looked at, and their files do not say how long these last"
            )
        return "; ".join(parts) or None
