"""Annotation files of the public data sets -> which video belongs to which text or class.

Nothing is downloaded and nothing in a file is executed. DATASETS says which settings the paper's
tests use with a data set, and how many videos and texts its splits have.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stan_infer.checkpoints.torch_pickle import read_pickle
from stan_infer.errors import InputError, check_word
from stan_infer.evaluation.class_files import read_class_pairs
from stan_infer.evaluation.retrieval_files import VIDEOS, pickled_pairs, read_pairs
from stan_infer.evaluation.task import (
    Task,
    keep_videos,
    name_classes,
    recognition_task,
    retrieval_task,
)
from stan_infer.system.json_file import parse_json
from stan_infer.system.outside_file import decode_text, read_bounded, read_lines, read_text
from stan_infer.system.table import read_table
from stan_infer.text.labels import Labels

MAX_BYTES = 128 * 2**20  # the largest, MSR-VTT's and Kinetics' training files, have under 100 MB
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how they begin
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set: the settings of the authors' test configs, and what its splits hold.

    kind: "retrieval", "joined" (all texts of a video are one query) or "recognition". splits: by
    name the number of videos, and of texts or of classes. classes: how many there are. frames,
    context_length: of the released config, or else of the paper. resize: shorter side as a multiple
    of the crop. mug_frames: where Mug-STAN's config tests with another number of frames. views:
    (clips, crops) of the paper's tests. categories: the names of the numbers that its file has.
    """

    kind: str
    splits: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    classes: int | None = None
    frames: int | None = None
    context_length: int | None = None
    resize: float | None = None
    mug_frames: int | None = None
    views: tuple[int, int] = (1, 1)
    categories: tuple[str, ...] = ()
    settings_from: str = "released config"

    def split(self, task: Task) -> str:
        """Name the split whose counts the task has, or say how many videos the file has."""
        counts = len(task.videos), len(task.texts) or len(task.classes)
        for name, wanted in self.splits.items():
            if counts == wanted:
                return name
        return f"as in the file, {counts[0]} videos"


def read_task(
    dataset: str,
    path: Path,
    *,
    labels: Labels | None = None,
    subset: Sequence[str] | None = None,
) -> Task:
    """Read an annotation file of a data set in DATASETS, in any form that such files have.

    labels: class names by number, for files that have numbers only, or to check their names.
    subset: names of the videos to keep (a split). What was left out or joined is logged. Raises
    InputError with the place that is wrong.
    """
    check_word("data set", dataset, DATASETS)
    data, name = DATASETS[dataset], str(path)
    if data.kind == "recognition":
        task = recognition_task(read_class_pairs(_text(_bytes(path), path), name), name)
    else:
        joined = data.kind == "joined"
        task = retrieval_task(_pairs(path, name), name, joined=joined)
    if labels is not None:
        task = name_classes(task, labels, name)
    elif task.labels and not task.classes:
        raise InputError(f"{name} has class numbers without names: give the names with --labels")
    empty = len(task.classes) - len(set(task.labels))
    if labels is not None and empty:
        _log.warning(
            "%s: %d of the %d classes of --labels have no video", name, empty, len(task.classes)
        )
    if data.classes is not None and len(task.classes) != data.classes:
        _log.warning(
            "%s has %d classes, and here are %d: the figures are not those of its whole test",
            dataset, data.classes, len(task.classes),
        )  # fmt: skip
    if data.categories:
        known = {str(i): category for i, category in enumerate(data.categories)}
        own = tuple(known.get(c, c) for c in task.categories)
        task = dataclasses.replace(task, categories=own)
    return task if subset is None else keep_videos(task, subset, name)


def read_names(path: Path) -> list[str]:
    """Names of videos from a list: one per line, the video column of a table, or a JSON list."""
    name = f"videos {path}"
    text = read_text(path, MAX_BYTES, name=name)
    if text.lstrip().startswith("["):
        names = parse_json(text, name)
        if not all(isinstance(n, str) for n in names) or not names:
            raise InputError(f"{name}: needs a JSON list of names")
        return list(names)
    known = [n for n in VIDEOS if n not in ("name", "id", "vid", "clip")]  # may be a video's
    table = read_table(text, name, known)
    if table is None:
        return read_lines(path, "videos")
    column = table.column(known)
    assert column is not None
    return [row[column] for row in table.rows]


def _pairs(path: Path, name: str) -> Any:
    data = _bytes(path)
    if data[:2] not in _PICKLES:
        return read_pairs(_text(data, path), name)
    try:
        value = read_pickle(data, _nothing, _nothing)
    except InputError as e:
        raise InputError(
            f"{path} is a pickle with more than plain values, which can run code and "
            f"is never loaded ({e}); give the text form that the data set's authors publish"
        ) from e
    return pickled_pairs(value, name)


def _bytes(path: Path) -> bytes:
    return read_bounded(path, MAX_BYTES, name=f"the file of annotations {path}", hint=_HINT)


def _text(data: bytes, path: Path) -> str:
    if data[:2] in _PICKLES:
        raise InputError(
            f"{path} is a pickle, which can run code and is never loaded; give the "
            "text form that the data set's authors publish"
        )
    return decode_text(data, name=f"the file of annotations {path}", hint=_HINT)


def _nothing(module: str, name: str) -> bool:
    """No class or function may stand in a pickle of captions."""
    return False


_HINT = "; give the data set's own annotation file"
# The names of its numbers 0 to 19, from the category.txt that comes with MSR-VTT.
_MSRVTT_CATEGORIES = (
    "music", "people", "gaming", "sports/actions", "news/events/politics", "education", "tv shows",
    "movie/comedy", "animation", "vehicles/autos", "howto", "travel", "science/technology",
    "animals/pets", "kids/family", "documentary", "food/drink", "cooking", "beauty/fashion",
    "advertisement",
)  # fmt: skip
_PAPER, _OWN = "the paper's recognition tests", "the model's own config"
DATASETS: dict[str, DataSet] = {
    "msrvtt": DataSet(
        "retrieval", {"1k-A test": (1000, 1000), "full test": (2990, 59800)},
        frames=12, context_length=32, resize=1.0, mug_frames=32, categories=_MSRVTT_CATEGORIES,
    ),
    "didemo": DataSet(
        "joined", {"test": (1004, 1004), "validation": (1065, 1065)},
        frames=64, context_length=77, resize=256 / 224,
    ),
    "lsmdc": DataSet(
        "retrieval", {"1000 public test": (1000, 1000)}, frames=12, context_length=32, resize=1.0
    ),
    "msvd": DataSet(
        "retrieval", {"test": (670, 27763)}, frames=12, context_length=32, resize=1.0,
        settings_from="MSR-VTT's config: none was released",
    ),
    "kinetics400": DataSet(
        "recognition", classes=400, frames=8, context_length=32, resize=1.0, views=(1, 3),
        settings_from=_PAPER,
    ),
    "ssv2": DataSet(
        "recognition", {"validation": (24777, 174)}, classes=174, frames=8, context_length=32,
        resize=1.0, views=(1, 3), settings_from=_PAPER,
    ),
    "retrieval": DataSet("retrieval", settings_from=_OWN),
    "recognition": DataSet("recognition", settings_from=_OWN),
}  # fmt: skip
