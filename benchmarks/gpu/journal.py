"""Rows of work on a GPU, in a file: each is there, whatever happens, as soon as it is known."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy
import torch
import triton

from benchmarks.record import ROOT, commit

# What a figure depends on: the code that is timed, and what times it.
TIMED = ("stan_infer/kernels", "stan_infer/network", "stan_infer/engines", "benchmarks/gpu")
TIMED += ("stan_infer/config.py", "stan_infer/checkpoints/presets.py")
TABLE = "stan_infer/kernels/tuned.json"
SAME = ("gpu", "sources", "versions", "stand_in")


class BusyError(Exception):
    """Another process writes the file."""


def sources(*, with_table: bool = True, root: Path = ROOT) -> str:
    """A hash of the sources that are timed, so that rows of other code are not taken for these.

    with_table: the measured rows of tuned.json are part of them.
    """
    files: list[Path] = []
    for name in TIMED:
        path = root / name
        files += [path] if path.suffix else sorted(path.rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    table = json.loads((root / TABLE).read_text())
    digest.update(json.dumps(table if with_table else table["tiles"], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def describe(kind: str, gpu: dict[str, Any], *, stand_in: bool, with_table: bool) -> dict[str, Any]:
    """What every row of a run has in common. gpu: as system.gpus has it."""
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    return {
        "kind": kind,
        "gpu": gpu["name"],
        "sm": gpu["sm"].replace("_", ""),
        "driver": gpu["driver"],
        "cuda": torch.version.cuda,
        "versions": {**versions, "numpy": numpy.__version__},
        "python": platform.python_version(),
        "commit": commit(),
        "sources": sources(with_table=with_table),
        "stand_in": stand_in,
    }


class Journal:
    """A JSONL file that is only appended to. Use it in a `with` statement."""

    def __init__(self, path: Path, common: dict[str, Any]) -> None:
        """Read the rows of the same GPU, sources and versions; others stay in the file.

        A last line that was cut off in the middle is removed. Raises BusyError.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.common = path, common
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._file)
            raise BusyError(f"another run writes {path}: wait for it or end it") from e
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            os.ftruncate(self._file, len(whole))
        rows = [json.loads(line) for line in whole.splitlines()]
        self.rows = [r for r in rows if all(r.get(k) == common[k] for k in SAME)]

    def __enter__(self) -> Journal:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let another run write."""
        os.close(self._file)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append one row; it is on the disk when this returns."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        whole = {**self.common, "date": now, **row}
        os.write(self._file, (json.dumps(whole, sort_keys=True) + "\n").encode())
        os.fsync(self._file)
        self.rows.append(whole)
        return whole

    def of(self, unit: str, lane: str | None = None) -> list[dict[str, Any]]:
        """Rows of a unit, or of one of its lanes, oldest first."""
        return [r for r in self.rows if r["unit"] == unit and lane in (None, r["lane"])]
