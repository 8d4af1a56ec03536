"""How far apart in time the sampled frames of a long video lie, and the note about it."""

from __future__ import annotations

from pathlib import Path

# Seconds. The models were trained with a frame in 2.5 s at most: MSR-VTT's clips last 10 to 30 s
# (12 frames), DiDeMo's 30 s (64), LSMDC's 2 to 20 s (12), WebVid's up to 60 s, 18 on average (8).
# Twice that is another kind of input: actions pass that no frame shows.
LONG_S = 5.0
_FEW = 150  # frames between two sampled ones that tell nothing: LONG_S at 30 a second
_WHY = "the models were trained on one every 0.5 to 2.5 s, and what happens in between is not seen"


def seconds_between(seconds: float | None, total: int, frames: int) -> float | None:
    """Return the mean time between two of the `frames` sampled of `total`, which last `seconds`.

    None: not known, and there are so many that it should be.
    """
    if seconds is None:
        return 0.0 if total < _FEW * frames else None
    return seconds / frames


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
                f"{self._name}); {_WHY}: cut long videos into parts"
            )
        if self._unknown:
            parts.append(
                f"{self._unknown} of {self._count} videos have more than {_FEW} frames between two "
                "that are looked at, and their files do not say how long these last"
            )
        return "; ".join(parts) or None


def gap_note(path: Path, gap_s: float | None, frames: int) -> str | None:
    """The note about one clip, None if its frames do not lie far apart."""
    if gap_s is None or gap_s <= LONG_S:
        return None
    return (
        f"{path}: {frames} frames of {gap_s * frames:.0f} s are looked at, one every "
        f"{gap_s:.1f} s; {_WHY}: --windows 10 scores it part by part (this note comes where frames "
        f"are more than {LONG_S:g} s apart)"
    )
