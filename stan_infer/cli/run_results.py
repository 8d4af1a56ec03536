"""What `stan-infer run` prints and writes: the texts of each clip, or the clips of each text."""

from __future__ import annotations

import dataclasses
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.cli.report import RowPrinter, print_json, width_of
from stan_infer.library.texts import Texts, best
from stan_infer.system import earlier_result
from stan_infer.system.atomic import new_file
from stan_infer.system.csv_file import write_csv
from stan_infer.video.clip import Clip
from stan_infer.video.moments import Moments

_TIMES = ["start_s", "end_s"]
_BY_VIDEO = ["video", *_TIMES, "rank", "text", "score", "probability"]
_BY_TEXT = ["text", "rank", "video", *_TIMES, "score"]
_NUMBERS = {*_TIMES, "rank", "score", "probability"}
_NUMBER_WIDTH, _TEXT_WIDTH = 7, 60
CSV = earlier_result.csv((",".join(c) for c in (_BY_VIDEO, _BY_TEXT)), "stan-infer run")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Output:
    """Where results go. top: how many of the best, 0 for all. sources: files that are read.

    overlapping: also parts of a moment of which a better one is shown; see video.moments.
    """

    texts: Texts
    top: int
    json: bool
    csv: Path | None
    sources: Sequence[str | Path]
    has_parts: bool  # clips are parts of videos
    overlapping: bool


class Results(ABC):
    """Takes the scores of one clip after the other. clips: how many there were."""

    columns: list[str]

    def __init__(self, output: Output) -> None:
        """Begin without a clip."""
        self.output, self.clips = output, 0
        self._rows: list[Row] = []
        self._is_unread = False  # nobody reads standard output any more
        self._text_width = min(_TEXT_WIDTH, max(map(width_of, output.texts.names)))

    @abstractmethod
    def add(self, path: Path, clip: Clip, scores: np.ndarray) -> None:
        """Take the scores [Q] of a clip."""

    def finish(self) -> None:
        """Print what could not be printed before, and write the CSV file."""
        if self.output.csv is not None:
            with new_file(self.output.csv, CSV, sources=self.output.sources) as made:
                cells = ([row.get(column) for column in self.columns] for row in self._rows)
                write_csv(made, self.columns, cells)
        if self._is_unread:
            sys.exit(128 + 13)

    def _print(self, show: Callable[[], None]) -> None:
        """Show rows. Where `| head` has ended, the CSV file is still wanted."""
        if self._is_unread:
            return
        try:
            show()
        except SystemExit:
            if self.output.csv is None:
                raise
            self._is_unread = True

    def _printer(self, paths: Sequence[str], left_out: Sequence[str] = ()) -> RowPrinter:
        left_out = [*left_out, *([] if self.output.has_parts else _TIMES)]
        widths = dict.fromkeys(self.columns, _NUMBER_WIDTH) | {"rank": 4}
        widths |= {"text": self._text_width, "video": max(map(width_of, paths))}
        shown = {c: widths[c] for c in self.columns if c not in left_out}
        return RowPrinter(shown, _NUMBERS)

    def _keep(self, rows: Sequence[Row]) -> None:
        if self.output.csv is not None:
            self._rows += rows


class TextsOfClips(Results):
    """Ranks the texts of each clip; rows are printed at once."""

    columns = _BY_VIDEO

    def __init__(self, output: Output, paths: Sequence[Path]) -> None:
        """paths: of all videos that may come."""
        super().__init__(output)
        # One text alone would always have probability 1.
        self._alone = len(output.texts.names) == 1
        left_out = ["rank", *(["probability"] if self._alone else [])]
        self._table = self._printer(list(map(os.fspath, paths)), left_out)

    def add(self, path: Path, clip: Clip, scores: np.ndarray) -> None:
        """Take the scores [Q] of a clip and print them."""
        texts, json = self.output.texts, self.output.json
        self.clips += 1
        probabilities = texts.probabilities(scores)
        own = {"video": os.fspath(path), **_times(clip)}
        rows = [
            {
                "rank": rank,
                "text": texts.names[i],
                "score": float(scores[i]),
                "probability": None if self._alone else float(probabilities[i]),
                "cut": i in texts.cut,
            }
            for rank, i in enumerate(best(scores, self.output.top), 1)
        ]
        full = [own | row for row in rows]
        self._keep(full)
        if not json:
            self._print(partial(self._table.print, full))
            return
        record = {
            **own,
            "decoder": clip.decoder,
            "total_frames": clip.total_frames,
            "frame_indices": clip.indices,
            "sampling": clip.sampling,
            "hdr": clip.hdr,
            "session": texts.session.describe(),
            "texts": len(texts.names),
            "scores": rows,
        }
        self._print(partial(print_json, "run", record))


class ClipsOfTexts(Results):
    """Ranks the clips of each text, which is known when all have come."""

    columns = _BY_TEXT

    def __init__(self, output: Output) -> None:
        """Begin without a clip."""
        super().__init__(output)
        self._found: list[tuple[Path, Clip]] = []
        self._scores: list[np.ndarray] = []

    def add(self, path: Path, clip: Clip, scores: np.ndarray) -> None:
        """Keep the scores [Q] of a clip; its pixels are dropped."""
        self.clips += 1
        bare = dataclasses.replace(clip, pixels=np.empty(0, np.uint8))
        self._found.append((path, bare))
        self._scores.append(scores)

    def finish(self) -> None:
        """Print the ranking of every text."""
        texts = self.output.texts
        if self._scores:
            scores = np.stack(self._scores)  # [clips, Q]
            paths = [os.fspath(path) for path, _ in self._found]
            table = self._printer(paths)
            for number, name in enumerate(texts.names):
                ranking = [
                    {
                        "rank": rank,
                        "video": paths[i],
                        **_times(self._found[i][1]),
                        "score": float(scores[i, number]),
                        "sampling": self._found[i][1].sampling,
                    }
                    for rank, i in enumerate(self._best(scores[:, number]), 1)
                ]
                rows = [{"text": name, **row} for row in ranking]
                self._keep(rows)
                if self.output.json:
                    record = {
                        "text": name,
                        "cut": number in texts.cut,
                        "session": texts.session.describe(),
                        "clips": self.clips,
                        "ranking": ranking,
                    }
                    self._print(partial(print_json, "run-by-text", record))
                else:
                    self._print(partial(table.print, rows))
        super().finish()

    def _best(self, scores: np.ndarray) -> Iterator[int]:
        """The clips that are shown of one text, best first."""
        top, moments = self.output.top, Moments()
        every = top == 0 or self.output.overlapping
        ranked = best(scores, 0)
        found = (i for i in ranked if every or self._is_new(i, moments))
        return islice(found, top or None)

    def _is_new(self, clip: int, moments: Moments) -> bool:
        path, seconds = self._found[clip][0], self._found[clip][1].seconds
        return seconds is None or moments.take(path, *seconds)


def _times(clip: Clip) -> Row:
    """Start and end of a part of a video, in seconds; {} for a whole one."""
    return {} if clip.seconds is None else dict(zip(_TIMES, clip.seconds, strict=True))
