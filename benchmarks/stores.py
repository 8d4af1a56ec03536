"""python -m benchmarks.stores: where a library keeps its vectors, and how they are searched.

Stores: that of stan_infer.library (SQLite, one file of vectors beside it), Parquet files, LanceDB.
Searches: exact ones, and the indexes of usearch, faiss and LanceDB. Each is measured in a process
of its own, on unit vectors in clusters whose spread falls from axis to axis, as embeddings have it;
the queries are further vectors of the same clusters. Needs `pip install -e .[stores]`. Appends rows
to benchmarks/results/.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT, append_rows
from benchmarks.script import options
from stan_infer.library.store import File, Store, new_store

WIDTH, BATCH, TOP = 512, 256, 10
STORES = ("library", "parquet", "lancedb")
SEARCHES = (
    "exact-f32 exact-f16 exact-i8-rerank usearch-f16 usearch-i8-rerank faiss-ivf-sq8 lancedb-ivf-pq"
).split()
PACKAGES = {
    "library": (),
    "parquet": ("pyarrow",),
    "lancedb": ("lancedb", "pyarrow"),
    "usearch": ("usearch", "numkong"),
    "faiss": ("faiss-cpu",),
}
KILLS = 5


def vectors(count: int, seed: int) -> Iterator[np.ndarray]:
    """Unit vectors float32 [<= 65536, 512]: a common direction, 5,000 centres, and noise."""
    fixed = np.random.default_rng(0)
    spread = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    common = fixed.standard_normal(WIDTH, np.float32) * spread
    centres = common + 0.7 * fixed.standard_normal((5000, WIDTH), np.float32) * spread
    turn = np.linalg.qr(fixed.standard_normal((WIDTH, WIDTH), np.float32))[0]
    rng = np.random.default_rng(seed)
    for start in range(0, count, 65536):
        n = min(65536, count - start)
        noise = rng.standard_normal((n, WIDTH), np.float32) * spread
        x = (centres[rng.integers(0, len(centres), n)] + 0.5 * noise) @ turn
        yield x / np.linalg.norm(x, axis=1, keepdims=True)


# --- stores: appending in batches ---


def append_library(folder: Path, x: np.ndarray, told: Callable[[int], None]) -> None:
    """What a run of `stan-infer embed -o LIBRARY` writes."""
    new_store(folder, "{}")
    with Store(folder, WIDTH) as store:
        for i in range(0, len(x), BATCH):
            for j in range(i, min(i + BATCH, len(x))):
                content = j.to_bytes(32)
                store.put_file(Path(f"videos/{j:07}.mp4"), File(1, 1, content))
                store.add_clip(content, [store.add_vector(x[j], None)])
            store.commit()
            told(min(i + BATCH, len(x)))


def rows_library(folder: Path) -> int:
    """How many rows are whole."""
    with Store(folder, WIDTH) as store:
        return store.rows()


def _table(x: np.ndarray, first: int) -> Any:
    import pyarrow as pa

    ids = range(first, first + len(x))
    return pa.table(
        {
            "id": list(ids),
            "path": [f"videos/{j:07}.mp4" for j in ids],
            "sha256": [f"{j:064x}" for j in ids],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH),
        }
    )


def append_parquet(folder: Path, x: np.ndarray, told: Callable[[int], None]) -> None:
    """A file for each batch, written beside, made durable and renamed."""
    import pyarrow.parquet as pq

    for i in range(0, len(x), BATCH):
        made = folder / "new.tmp"
        with made.open("wb") as file:
            pq.write_table(_table(x[i : i + BATCH], i), file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(made, folder / f"part-{i:09}.parquet")
        told(min(i + BATCH, len(x)))


def rows_parquet(folder: Path) -> int:
    """How many rows are whole."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(p).num_rows for p in folder.glob("*.parquet"))


def append_lancedb(folder: Path, x: np.ndarray, told: Callable[[int], None]) -> None:
    """A version of the table for each batch."""
    import lancedb

    db = lancedb.connect(folder)
    table = None
    for i in range(0, len(x), BATCH):
        rows = _table(x[i : i + BATCH], i)
        if table is None:
            table = db.create_table("rows", rows)
        else:
            table.add(rows)
        told(min(i + BATCH, len(x)))


def rows_lancedb(folder: Path) -> int:
    """How many rows are whole."""
    import lancedb

    return int(lancedb.connect(folder).open_table("rows").count_rows())


def measure_store(name: str, place: Path, folder: Path) -> dict[str, Any]:
    """Append everything; then append again in processes that are killed, and count what is left."""
    append, rows = globals()[f"append_{name}"], globals()[f"rows_{name}"]
    x = np.load(place / "vectors.npy", mmap_mode="r")
    start = time.perf_counter()
    append(folder, x, lambda done: None)
    seconds = time.perf_counter() - start
    assert rows(folder) == len(x)
    return {
        "append_s": seconds,
        "disk_mib": _size(folder) / 2**20,
        "bytes_of_vectors_mib": x.nbytes / 2**20,
        "files": sum(1 for p in folder.rglob("*") if p.is_file()),
        "after_kill": [_killed(name, place) for _ in range(KILLS)],
    }


def _killed(name: str, place: Path) -> dict[str, Any]:
    """Kill a process that appends; what it had said was done must be there."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        command = [sys.executable, "-m", "benchmarks.stores", "--job", f"append:{name}"]
        child = subprocess.Popen(
            [*command, "--place", str(place), "--folder", folder],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert child.stdout is not None
        said = int(child.stdout.readline())
        time.sleep(random.uniform(0.05, 1.0))
        child.send_signal(signal.SIGKILL)
        said = max([said, *map(int, child.stdout.read().split("\n")[:-1])])
        child.wait()
        found = globals()[f"rows_{name}"](Path(folder))
        return {"said": said, "found": found, "lost": said - found, "part": found % BATCH}


# --- searches ---

Search = Callable[[np.ndarray], Any]  # one query [512] -> the ids of its nearest


def _best(scores: np.ndarray) -> np.ndarray:
    part = np.argpartition(-scores, TOP)[:TOP]
    return part[np.argsort(-scores[part])]


def search_exact_f32(x: np.ndarray, folder: Path) -> dict[str, Search]:
    """Products of numpy over all vectors."""
    x = np.asarray(x)
    return {"": lambda q: _best(x @ q)}


def search_exact_f16(x: np.ndarray, folder: Path) -> dict[str, Search]:
    """usearch's exact search over a copy in 16 bits."""
    from usearch.index import search

    half = x.astype(np.float16)
    return {"": lambda q: search(half, q.astype(np.float16), TOP, "ip", exact=True, threads=2).keys}


def search_exact_i8_rerank(x: np.ndarray, folder: Path) -> dict[str, Search]:
    """usearch's exact search over a copy in 8 bits; the first of it once more in 32 bits."""
    from usearch.index import search

    eight = np.concatenate([_eight(x[i : i + BATCH**2]) for i in range(0, len(x), BATCH**2)])

    def found(q: np.ndarray, first: int) -> np.ndarray:
        near = search(eight, _eight(q[None])[0], first, "cos", exact=True, threads=2).keys
        return _reranked(x, q, near)

    return {f"first {n}": lambda q, n=n: found(q, n) for n in (50, 100, 200)}


def search_usearch_f16(x: np.ndarray, folder: Path) -> dict[str, Search]:
    """usearch's graph (HNSW) over 16 bits."""
    return _usearch(x, folder, "f16", lambda v: v, 0)


def search_usearch_i8_rerank(x: np.ndarray, folder: Path) -> dict[str, Search]:
    """usearch's graph (HNSW) over 8 bits; the first 50 once more in 32 bits."""
    return _usearch(x, folder, "i8", _eight, 50)


def _usearch(x: np.ndarray, folder: Path, dtype: str, form: Any, first: int) -> dict[str, Search]:
    from usearch.index import Index

    index = Index(ndim=WIDTH, metric="cos", dtype=dtype, connectivity=16, expansion_add=128)
    for i in range(0, len(x), BATCH**2):
        part = x[i : i + BATCH**2]
        index.add(np.arange(i, i + len(part)), form(part), threads=2)
    index.save(str(folder / "index.usearch"))

    def found(q: np.ndarray, wide: int) -> Any:
        index.expansion_search = wide
        near = index.search(form(q[None])[0], first or TOP, threads=2).keys
        return _reranked(x, q, near) if first else near

    return {f"expansion {n}": lambda q, n=n: found(q, n) for n in (64, 128, 256, 512)}


def search_faiss_ivf_sq8(x: np.ndarray, folder: Path) -> dict[str, Search]:
    """faiss: 4,096 lists of 8-bit vectors; the first 50 once more in 32 bits."""
    import faiss

    faiss.omp_set_num_threads(2)
    index = faiss.index_factory(WIDTH, f"IVF{_lists(len(x))},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(np.asarray(x[: 64 * _lists(len(x))]))
    for i in range(0, len(x), BATCH**2):
        index.add(np.asarray(x[i : i + BATCH**2]))
    faiss.write_index(index, str(folder / "index.faiss"))

    def found(q: np.ndarray, probes: int) -> np.ndarray:
        index.nprobe = probes
        return _reranked(x, q, index.search(q[None], 50)[1][0])

    return {f"probes {n}": lambda q, n=n: found(q, n) for n in (16, 32, 64, 128)}


def search_lancedb_ivf_pq(x: np.ndarray, folder: Path) -> dict[str, Search]:
    """LanceDB's usual index, with its refinement over the first 100."""
    import lancedb

    table = lancedb.connect(folder).create_table("rows", _table(np.asarray(x), 0))
    table.create_index(
        metric="cosine", num_partitions=max(1, _lists(len(x)) // 4), num_sub_vectors=64
    )

    def found(q: np.ndarray, probes: int) -> list[int]:
        wanted = table.search(q).distance_type("cosine").limit(TOP).select(["id", "_distance"])
        return [r["id"] for r in wanted.nprobes(probes).refine_factor(10).to_list()]

    return {f"probes {n}": lambda q, n=n: found(q, n) for n in (16, 32, 64, 128)}


def _lists(count: int) -> int:
    return max(1, min(4096, count // 64))


def _eight(x: np.ndarray) -> np.ndarray:
    """Each vector in 8 bits, by its own largest value: the cosine needs no scale."""
    scale = np.abs(x).max(1, keepdims=True)
    return np.round(x * (127 / scale)).astype(np.int8)


def _reranked(x: np.ndarray, q: np.ndarray, near: np.ndarray) -> np.ndarray:
    near = near[near >= 0]
    return near[np.argsort(-(x[near] @ q))][:TOP]


def measure_search(name: str, place: Path, folder: Path) -> list[dict[str, Any]]:
    """Build the index, ask every query with each setting, and compare with exact search."""
    x = np.load(place / "vectors.npy", mmap_mode="r")
    asked, right = np.load(place / "queries.npy"), np.load(place / "right.npy")
    start = time.perf_counter()
    settings = globals()[f"search_{name.replace('-', '_')}"](x, folder)
    common = {
        "build_s": time.perf_counter() - start,
        "index_mib": _size(folder) / 2**20,
        "build_peak_mib": _peak_mib(),
    }
    rows = []
    for setting, search in settings.items():
        for q in asked[:5]:
            search(q)
        hits, times = 0, []
        for q, wanted in zip(asked, right, strict=True):
            start = time.perf_counter()
            found = search(q)
            times.append((time.perf_counter() - start) * 1e3)
            hits += len(set(map(int, found)) & set(wanted.tolist()))
        cuts = statistics.quantiles(times, n=20)
        speed = {"query_ms_p50": statistics.median(times), "query_ms_p95": cuts[-1]}
        rows.append({**common, "setting": setting, **speed, "recall_at_10": hits / right.size})
    return rows


# --- all of it ---


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _peak_mib() -> float:
    # Not getrusage: its peak counts the parent's, which was there before exec.
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def _installed_mib(names: tuple[str, ...]) -> float:
    files = [f.locate() for n in names for f in distribution(n).files or ()]
    return sum(os.path.getsize(f) for f in files if os.path.exists(f)) / 2**20


def prepare(place: Path, count: int, queries: int) -> None:
    """Write the vectors, the queries, and the right answers."""
    shape = (count, WIDTH)
    x = np.lib.format.open_memmap(place / "vectors.npy", "w+", np.float32, shape)
    at = 0
    for part in vectors(count, 1):
        x[at : at + len(part)] = part
        at += len(part)
    x.flush()
    asked = np.concatenate([*vectors(queries, 2)])
    np.save(place / "queries.npy", asked)
    np.save(place / "right.npy", np.stack([_best(np.asarray(x) @ q) for q in asked]))


def _job(kind: str, name: str, place: Path) -> list[dict[str, Any]]:
    """Measure one in a process of its own, with two threads."""
    threads = {f"{n}_NUM_THREADS": "2" for n in ("OMP", "OPENBLAS", "RAYON")}
    threads |= {"LANCE_CPU_THREADS": "2", "TOKIO_WORKER_THREADS": "2"}
    with tempfile.TemporaryDirectory(dir=place) as folder:
        command = [sys.executable, "-m", "benchmarks.stores", "--job", f"{kind}:{name}"]
        done = subprocess.run(
            [*command, "--place", str(place), "--folder", folder],
            env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return found if isinstance(found, list) else [found]


def main() -> None:
    """Measure and record."""
    args = options(
        __doc__, vectors=1_000_000, queries=200, stores=STORES, searches=tuple(SEARCHES),
        place=tempfile.gettempdir(), job="", folder="",
    )  # fmt: skip
    kind, _, name = args.job.partition(":")
    if kind == "append":
        x = np.load(Path(args.place) / "vectors.npy", mmap_mode="r")
        globals()[f"append_{name}"](Path(args.folder), x, lambda n: print(n, flush=True))
        return
    if kind:
        measure = {"store": measure_store, "search": measure_search}[kind]
        print(json.dumps(measure(name, Path(args.place), Path(args.folder))))
        return
    with tempfile.TemporaryDirectory(dir=args.place) as made:
        place = Path(made)
        prepare(place, args.vectors, args.queries)
        for kind, names in (("store", args.stores), ("search", args.searches)):
            for name in filter(None, names):
                packages = PACKAGES.get(name.partition("-")[0], ())
                if name.startswith("exact") and not name.endswith("f32"):
                    packages = PACKAGES["usearch"]
                what = {"what": kind, "name": name, "vectors": args.vectors, "width": WIDTH}
                what |= {"threads": 2, "install_mib": _installed_mib(packages)}
                what["packages"] = {n: distribution(n).version for n in packages}
                for row in _job(kind, name, place):
                    append_rows("stores", [what | row])
                    print(json.dumps(what | row), flush=True)


if __name__ == "__main__":
    main()
