"""Files of embeddings: .npz, .npy with a .json beside it, .parquet. One writer for each.

Rows are written as they come, so memory does not grow with the vectors. `info`, in each of them:
config, engine (with precision and versions), source (file name and hashes), level, normalised.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.artefacts.npz_file import write_npz
from stan_infer.errors import InputError, storable
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, check_file, new_file
from stan_infer.system.json_file import json_line
from stan_infer.system.packages import require
from stan_infer.video.clip import Clip

_BY = "stan-infer embed"
_SCHEMA = "embeddings"
_OF_VIDEOS = ("paths", "embeddings", "indices", "total_frames", "decoders", "sha256")
_OF_PARTS = ("start_s", "end_s")
_OF_TEXTS = ("texts", "text_embeddings", "input_ids")
_GROUP = 4096  # vectors in a row group of Parquet
_MAX_FOOTER = 2**24  # bytes
_KEY = "stan_infer"  # in the metadata of a Parquet file


class EmbeddingFile(ABC):
    """A file that is being written."""

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        """path: the temporary file to write to, in a folder of its own. info: JSON types."""
        self.path, self.info = path, info

    @abstractmethod
    def add_video(self, path: Path, clip: Clip, features: NDArray[Any], sha256: str) -> None:
        """Add a video, or a part of one, of which all must then be. features: float32 [E] or
        [T, E], the same shape for all. sha256: of its file, in hex.
        """

    @abstractmethod
    def add_texts(
        self, texts: Sequence[str], ids: NDArray[np.int64], features: NDArray[Any]
    ) -> None:
        """Add texts. ids: [Q, L], 0 is padding; features: float32 [Q, E] or [Q, L, E]."""

    @abstractmethod
    def finish(self) -> None:
        """Write what comes last."""


class _Rows:
    """An .npy file of float32 whose number of rows is known at its end."""

    def __init__(self, path: Path) -> None:
        self.path, self._start = path, 0
        self.shape: tuple[int, ...] = (0,)
        self._file = path.open("wb")

    def add(self, rows: NDArray[Any]) -> None:
        """Add rows [n, ...]."""
        if self.shape == (0,):
            self.shape = (0, *rows.shape[1:])
            self._start = self._head()
        if rows.shape[1:] != self.shape[1:]:
            raise InputError(f"vectors of {rows.shape[1:]} and {self.shape[1:]} are in one file")
        self._file.write(np.ascontiguousarray(rows, np.float32).data)
        self.shape = (self.shape[0] + len(rows), *self.shape[1:])

    def close(self) -> None:
        """Write how many rows there are into the header, for which numpy leaves room."""
        self._file.seek(0)
        end = self._head()
        assert end == self._start, "the header has another length"
        self._file.close()

    def _head(self) -> int:
        head = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, head)
        return self._file.tell()


class _Npz(EmbeddingFile):
    """Arrays: paths [n] (text, see errors.storable), embeddings float32 [n, E] or [n, T, E],
    indices int64 [n, T] (the frames used), total_frames int64 [n], decoders [n] (text), sha256 [n]
    (of the files, text in hex); of parts of videos also start_s, end_s float64 [n]; where texts
    were given, texts [m], text_embeddings float32 [m, E] or [m, L, E], input_ids int32 [m, L];
    info: JSON text. numpy.load reads it with allow_pickle=False.
    """

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        super().__init__(path, info)
        self._lists: dict[str, list[Any]] = {n: [] for n in (*_OF_VIDEOS, *_OF_PARTS, *_OF_TEXTS)}
        self._rows: dict[str, _Rows] = {}

    def add_video(self, path: Path, clip: Clip, features: NDArray[Any], sha256: str) -> None:
        self._add("embeddings", features[None])
        facts = (storable(path), clip.indices, clip.total_frames, clip.decoder, sha256)
        for name, value in zip(("paths", *_OF_VIDEOS[2:]), facts, strict=True):
            self._lists[name].append(value)
        for name, value in _times(clip).items():
            self._lists[name].append(value)

    def add_texts(
        self, texts: Sequence[str], ids: NDArray[np.int64], features: NDArray[Any]
    ) -> None:
        self._add("text_embeddings", features)
        self._lists["texts"] += map(storable, texts)
        self._lists["input_ids"] += list(ids.astype(np.int32))

    def finish(self) -> None:
        for rows in self._rows.values():
            rows.close()
        write_npz(self.path, self._arrays())

    def _arrays(self) -> Iterator[tuple[str, NDArray[Any] | Path]]:
        for name, values in self._lists.items():
            if name in self._rows:
                yield name, self._rows[name].path
            elif values:
                yield name, np.array(values)
        yield "info", np.array(json.dumps(self.info, sort_keys=True))

    def _add(self, name: str, rows: NDArray[Any]) -> None:
        if name not in self._rows:
            self._rows[name] = _Rows(self.path.with_name(f"{name}.npy"))
        self._rows[name].add(rows)


class _Npy(EmbeddingFile):
    """float32 [n, ...]; the .json beside it has info, the array's SHA-256, and an entry per row."""

    def __init__(self, path: Path, info: Mapping[str, Any], beside: Path) -> None:
        super().__init__(path, info)
        self._rows, self._beside = _Rows(path), beside
        self._entries: list[str] = []  # as text, which takes a tenth of the memory

    def add_video(self, path: Path, clip: Clip, features: NDArray[Any], sha256: str) -> None:
        self._rows.add(features[None])
        entry = {"path": str(path), **_times(clip), "indices": clip.indices}
        entry["total_frames"] = clip.total_frames
        self._entries.append(json_line({**entry, "decoder": clip.decoder, "sha256": sha256}))

    def add_texts(
        self, texts: Sequence[str], ids: NDArray[np.int64], features: NDArray[Any]
    ) -> None:
        self._rows.add(features)
        pairs = zip(texts, ids, strict=True)
        self._entries += [json_line({"text": text, "input_ids": row}) for text, row in pairs]

    def finish(self) -> None:
        self._rows.close()
        with self.path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        array = {"shape": self._rows.shape, "dtype": "float32", "sha256": digest}
        head = json_line({"schema": f"stan-infer/{_SCHEMA}/1", "array": array, "info": self.info})
        with self._beside.open("w", encoding="utf-8") as f:
            f.write(head[:-1] + ', "rows": [\n' + ",\n".join(self._entries) + "\n]}\n")


class _Parquet(EmbeddingFile):
    """A row for every vector: path, total_frames, decoder, sha256 of the file (of parts start_s and
    end_s; and frame, its number in the video), or text (and token, its place, and its id; padding
    has no row); embedding: a list of fixed size, as vector databases take it. info: under
    "stan_infer" in the schema's metadata.
    """

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        super().__init__(path, info)
        self._arrow, self._size = _pyarrow(), 0
        self._writer: Any = None  # is opened for the first rows, which decide the schema
        self._columns: dict[str, list[Any]] = {}
        self._vectors: list[NDArray[Any]] = []

    def add_video(self, path: Path, clip: Clip, features: NDArray[Any], sha256: str) -> None:
        rows = np.atleast_2d(features)
        count = len(rows)
        frames = {"frame": clip.indices.tolist()} if features.ndim == 2 else {}
        facts: dict[str, list[Any]] = {
            "total_frames": [clip.total_frames] * count,
            "decoder": [clip.decoder] * count,
            "sha256": [sha256] * count,
        }
        times = {name: [value] * count for name, value in _times(clip).items()}
        self._add({"path": [storable(path)] * count, **times, **frames, **facts}, rows)

    def add_texts(
        self, texts: Sequence[str], ids: NDArray[np.int64], features: NDArray[Any]
    ) -> None:
        if features.ndim == 2:
            self._add({"text": list(map(storable, texts))}, features)
            return
        for text, row, vectors in zip(texts, ids, features, strict=True):
            place = np.nonzero(row)[0]
            facts = {"token": place.tolist(), "token_id": row[place].tolist()}
            self._add({"text": [storable(text)] * len(place), **facts}, vectors[place])

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def _add(self, columns: Mapping[str, list[Any]], rows: NDArray[Any]) -> None:
        for name, values in columns.items():
            self._columns.setdefault(name, []).extend(values)
        self._vectors.append(np.asarray(rows, np.float32))
        self._size += len(rows)
        if self._size >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._vectors:
            return
        pa, _ = self._arrow
        rows = np.concatenate(self._vectors)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        table = pa.table({**self._columns, "embedding": vectors})
        if self._writer is None:
            info = {_KEY: json.dumps(self.info, sort_keys=True)}
            self._schema = table.schema.with_metadata(info)
            self._writer = self._arrow[1].ParquetWriter(str(self.path), self._schema)
        self._writer.write_table(table.cast(self._schema))
        self._columns, self._vectors, self._size = {}, [], 0


def _times(clip: Clip) -> dict[str, float]:
    """Where a part begins and ends; nothing of a whole video."""
    return {} if clip.seconds is None else dict(zip(_OF_PARTS, clip.seconds, strict=True))


def _pyarrow() -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet; MissingError without them."""
    return tuple(require(n, "writing .parquet", "parquet") for n in ("pyarrow", "pyarrow.parquet"))


def _why_keep_parquet(path: Path) -> str | None:
    with path.open("rb") as f:
        size = f.seek(0, 2)
        f.seek(max(0, size - 8))
        tail = f.read(8)
        footer = int.from_bytes(tail[:4], "little")
        if tail[4:] == b"PAR1" and 0 < footer <= min(size - 8, _MAX_FOOTER):
            f.seek(size - 8 - footer)
            if _KEY.encode() in f.read(footer):
                return None
    return f"it was not written by {_BY}"


def _why_keep_npz(path: Path) -> str | None:
    reasons = [
        earlier_result.arrays((*names, "info"), _BY, (*_OF_PARTS, *_OF_TEXTS))(path)
        for names in (_OF_VIDEOS, _OF_TEXTS)
    ]
    return None if None in reasons else reasons[0]


_why_keep_json = earlier_result.json_object(_SCHEMA, _BY)


def _why_keep_npy(path: Path) -> str | None:
    beside = path.with_suffix(".json")
    return _why_keep_json(beside) if beside.exists() else f"it was not written by {_BY}"


_KEEP = {".npz": _why_keep_npz, ".npy": _why_keep_npy, ".parquet": _why_keep_parquet}


def check_embeddings(out: Path, *, videos: bool, texts: bool, sources: Sources) -> None:
    """Raise InputError or MissingError where new_embeddings would; call it before long work.

    videos, texts: what the file will hold.
    """
    if out.suffix not in _KEEP:
        raise InputError(
            f"--out {out} must end in {', '.join(_KEEP)}; a new library is a name without a "
            f"suffix, or one that ends with /: {out}/"
        )
    if videos and texts and out.suffix != ".npz":
        raise InputError(
            f"--out {out} holds one table: give videos or texts, or a file that ends in .npz"
        )
    if out.suffix == ".parquet":
        _pyarrow()
    if out.suffix == ".npy":
        check_file(out.with_suffix(".json"), _why_keep_json, sources=sources)
    check_file(out, _KEEP[out.suffix], sources=sources)


@contextmanager
def new_embeddings(
    out: Path, info: Mapping[str, Any], *, sources: Sources
) -> Iterator[EmbeddingFile]:
    """Yield the writer for the suffix of `out`; the file appears whole at the end, or not at all.

    sources: files that are read, which are not replaced; a file at `out` is replaced only if it is
    an earlier one of this kind. Of an .npy and its .json one after the other is renamed. Raises as
    check_embeddings.
    """
    with ExitStack() as stack:
        place = stack.enter_context(new_file(out, _KEEP[out.suffix], sources=sources))
        writer: EmbeddingFile
        if out.suffix == ".npy":
            json_file = new_file(out.with_suffix(".json"), _why_keep_json, sources=sources)
            writer = _Npy(place, info, stack.enter_context(json_file))
        else:
            writer = _Npz(place, info) if out.suffix == ".npz" else _Parquet(place, info)
        yield writer
        writer.finish()
