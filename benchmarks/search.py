"""python -m benchmarks.search: how long `library.search` takes over a million rows.

A library of synthetic vectors (benchmarks.stores.vectors) is searched with texts by a B/32 model
with random weights, in a process that does nothing else: as a checkpoint in engine eager, and as an
exported folder in ONNX Runtime. Measured are making the 8 bits of all vectors again, opening the
library, and then whole searches: the text, every row, the hits. `--place` is a folder for 4 GB.
Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import stan_infer as si
from benchmarks.record import ROOT, append_rows
from benchmarks.script import options, random_model
from benchmarks.stores import WIDTH, vectors
from stan_infer.export.export_model import export_model
from stan_infer.library.codes import CODES, read_first
from stan_infer.library.nearest import nearest
from stan_infer.library.place import locked
from stan_infer.library.row_filter import RowFilter
from stan_infer.library.search import Searcher
from stan_infer.library.store import File, Store

TOP = 10


def make(folder: Path, session: si.Session, count: int) -> None:
    """A library of the demo's clips, and of so many rows of which there are no videos."""
    si.embed_library(session, [ROOT / "examples" / "motion" / "clips"], folder, workers=1)
    number = 0
    with locked(folder), Store(folder, WIDTH) as store:
        for part in vectors(count, 1):
            for vector in part:
                content = hashlib.sha256(number.to_bytes(8)).digest()
                path = Path(f"/videos/{number % 100:02}/{number:07}.mp4")
                store.put_file(path, File(1, 1, content))
                store.add_clip(content, [store.add_vector(vector, None)], length_s=number % 60)
                number += 1
            store.commit()


def timed(search: Callable[[str], Any], count: int) -> dict[str, float]:
    """Milliseconds of searches for different texts, after five that do not count."""
    times = []
    for i in range(count + 5):
        start = time.perf_counter()
        search(f"a person does the thing of number {i}")
        times.append((time.perf_counter() - start) * 1e3)
    cuts = statistics.quantiles(times[5:], n=20)
    return {"ms_p50": statistics.median(times[5:]), "ms_p95": cuts[-1]}


def agrees(searcher: Searcher, count: int) -> float:
    """The share of the ten best in float64 that are found: recall at 10."""
    library, hits = searcher.library, 0
    rng = np.random.default_rng(3)
    asked = rng.standard_normal((count, WIDTH))
    for start in range(0, count, 10):
        queries = asked[start : start + 10]
        scores = np.concatenate(
            [
                library.vectors[i : i + 65536].astype(np.float64) @ queries.T
                for i in range(0, len(library.vectors), 65536)
            ]
        )
        for query, right in zip(queries, scores.T, strict=True):
            codes = read_first(library.codes, len(library.ids))
            found = nearest(library.vectors, codes, query, library.ids, TOP)
            hits += len({*islice(found, TOP)} & {*np.argsort(-right)[:TOP].tolist()})
    return hits / (count * TOP)


def make_again(folder: Path) -> dict[str, float]:
    """Seconds in which a run makes the 8 bits of a library that has none, and their size."""
    (folder / CODES).unlink()
    start = time.perf_counter()
    with locked(folder), Store(folder, WIDTH):
        pass
    seconds = time.perf_counter() - start
    return {"codes_s": seconds, "codes_mib": (folder / CODES).stat().st_size / 2**20}


def _memory_mib(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def measure(folder: Path, session: si.Session, queries: int) -> dict[str, Any]:
    """Open the library and search it."""
    before = _memory_mib("RssAnon")
    start = time.perf_counter()
    library = si.open_library(folder)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    searcher = Searcher(library, session, say=print)
    row: dict[str, Any] = {
        "what": "search",
        "engine": session.describe()["engine"],
        "vectors": len(library.ids),
        "width": WIDTH,
        "open_s": opened,
        "check_s": time.perf_counter() - start,
        "recall_at_10": agrees(searcher, 20),
        **timed(lambda text: searcher.search(text, top=TOP), queries),
    }
    row["text"] = timed(session.embed_text, queries)
    keep = RowFilter(path="videos/07/*")
    row["path"] = timed(lambda text: searcher.search(text, top=TOP, keep=keep), 10)
    keep = RowFilter(longer=59)
    row["length"] = timed(lambda text: searcher.search(text, top=TOP, keep=keep), 10)
    row["private_mib"] = _memory_mib("RssAnon") - before
    return row


def main() -> None:
    """Measure and record."""
    args = options(__doc__, vectors=1_000_000, queries=200, place=tempfile.gettempdir())
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        folder, exported = Path(place) / "library", Path(place) / "exported"
        model = random_model("stan-b32")
        export_model(model, exported)
        with si.open_session(model) as session:
            make(folder, session, args.vectors)
            made = make_again(folder)
            rows = [measure(folder, session, args.queries) | made]
        with si.open_session(exported) as session:
            rows.append(measure(folder, session, args.queries) | made)
    append_rows("search", rows)
    print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
