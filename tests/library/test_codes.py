"""The 8 bits of a library's vectors: no hit is lost by them, and their file can be made again."""

import hashlib
import json
import os
import sys
import threading
import time

import numpy as np
import pytest

import stan_infer as si
from stan_infer.library import blocks, codes, nearest, search
from stan_infer.library import store as store_
from stan_infer.library.codes import CODES, bounds, encoded
from stan_infer.library.database import PASSPORT, VECTORS
from stan_infer.library.embed_library import embed_library
from stan_infer.library.library import open_library
from stan_infer.library.migrate_library import migrate_library
from stan_infer.library.store import Store, new_store
from stan_infer.library.verify_library import verify_library
from tests.conftest import edit_json
from tests.library.fake_stack import FakeSession
from tests.video.broken_videos import make_clip

WIDTHS = (1, 2, 3, 24, 64, 512, 640, 768)
COUNT = 600


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def gaussian(rng, width):
    return unit(rng.standard_normal((COUNT, width)))


def with_peaks(rng, width):
    """A few numbers much larger than the others, as in vectors of CLIP."""
    x = rng.standard_normal((COUNT, width))
    x[:, : 1 + width // 200] += 12 * np.sqrt(width)
    return unit(x)


def in_corners(rng, width):
    """All numbers but one are zero."""
    return np.eye(width, dtype=np.float32)[rng.integers(0, width, COUNT)]


def nearly_equal(rng, width):
    return unit(np.ones(width) + 1e-3 * rng.standard_normal((COUNT, width)))


def of_codes(rng, width):
    """Those that lie in a corner after the turn, where 8 bits hold least."""
    turn = codes.turned(np.eye(width, dtype=np.float32))
    return unit(turn[:, rng.integers(0, width, COUNT)].T)


KINDS = (gaussian, with_peaks, in_corners, nearly_equal, of_codes)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_product_is_above_its_bound(kind, width):
    rng = np.random.default_rng(width)
    vectors = kind(rng, width)
    held, every = encoded(vectors), np.arange(COUNT)
    assert held.shape == (COUNT, width) and held.dtype == np.int8
    for query in (*vectors[:5].astype(np.float64), *rng.standard_normal((20, width)) * 1e3):
        products = vectors.astype(np.float64) @ query
        above = (bounds(held, query, every) - products) / np.linalg.norm(query)
        known = above > -np.inf
        assert (above[known] >= 0).all()
        if kind in (gaussian, with_peaks) and width >= 64:
            assert above[known].mean() < 0.04, "near enough to leave most vectors unread"
            assert known.mean() > 0.99


@pytest.mark.parametrize("width", WIDTHS)
def test_the_turn_keeps_products_and_spreads_peaks(width):
    rng = np.random.default_rng(0)
    turn = codes.turned(np.eye(width, dtype=np.float32)).astype(np.float64)
    np.testing.assert_allclose(turn @ turn.T, np.eye(width), atol=1e-6)
    if width >= 64:
        largest = np.abs(codes.turned(with_peaks(rng, width))).max(1) * np.sqrt(width)
        assert largest.mean() < 5, "of a normal distribution it would be 3 to 4"


def test_a_vector_has_the_same_bytes_in_whatever_company():
    vectors = gaussian(np.random.default_rng(0), 768)
    held = encoded(vectors)
    for part in (slice(0), slice(0, 1), slice(5, 8), slice(100, 400)):
        assert (encoded(vectors[part]) == held[part]).all()


@pytest.mark.parametrize("width", [3, 24, 512, 640])
def test_products_of_8_bits_are_exact(width):
    """Those of the package numkong, also of the largest numbers and of rows that lie apart."""
    import numkong

    rng = np.random.default_rng(0)
    rows = rng.integers(-127, 128, (300, width + 8), dtype=np.int8)[:, :width]
    rows[:2], rows[2:4] = 127, -127
    for query in (rows[0], rows[2], rows[7]):
        found = np.asarray(numkong.cdist(query[None], rows, "dot"))[0]
        assert (found == rows.astype(np.int64) @ query.astype(np.int64)).all()


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("width", [24, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_in_the_same_order_without_them(kind, width, cpus, monkeypatch):
    monkeypatch.setattr(blocks, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(codes, "_BLOCK", 64)
    rng = np.random.default_rng(1)
    vectors = kind(rng, width)
    vectors[100:200] = vectors[:100]  # equal scores
    every, held = np.arange(COUNT), encoded(vectors)
    for ids in (every, every[3::100], every[::2], every[1:]):
        for count in (1, 10, 599, 10_000):
            query = rng.standard_normal(width) * 10.0 ** rng.integers(-9, 9)
            right = [*nearest.nearest(vectors, None, query, ids, count)]
            assert [*nearest.nearest(vectors, held, query, ids, count)] == right
            assert sorted(right) == [*range(len(ids))]


def turn_back(x, width):
    """The vectors that lie at x [n, E] after the turn."""
    return (x @ codes.turned(np.eye(width, dtype=np.float32)).T).astype(np.float32)


@pytest.mark.parametrize("width", [64, 512, 640])
def test_a_bound_holds_where_rounding_takes_most_away(width):
    """Half a step of every number, all in the direction of the query."""
    step = 5 / 127 / np.sqrt(width)
    signs = np.where(np.arange(width) % 3, 1.0, -1.0)
    steps = np.full(width, 25.499)
    steps[: width // 4] = 24.499
    x = turn_back((signs * steps * step)[None], width)
    assert abs(np.linalg.norm(x) - 1) < 0.02
    query = turn_back((signs / np.sqrt(width))[None], width)[0].astype(np.float64)
    (bound,), product = bounds(encoded(x), query, np.arange(1)), x[0].astype(np.float64) @ query
    assert 0 < bound - product < 2e-3


@pytest.mark.parametrize("width", [64, 512])
def test_a_number_beyond_the_codes_makes_a_vector_unknown(width):
    x = np.zeros((3, width))
    x[:, 0] = np.array([127, 128, 200]) * 5 / 127 / np.sqrt(width)
    found = encoded(turn_back(x, width))
    assert found[0, 0] == 127 and (found[1:] == -128).all()
    query = turn_back(x, width)[0].astype(np.float64)
    assert np.isneginf(bounds(found, query, np.arange(3))).tolist() == [False, True, True]


HASHES = {
    24: "6f533997584b10ee9dd029fd03f6c7a4f97dc9f9fb0a9848a36d82cfd76ebe63",
    512: "6e266e3dc8a5491f7a9aa4790550932e2951d3b14747132baf502fc98caad6d6",
    640: "3b6f4256f083f0e046ab86ca46cb5610ee02ae0c2b2e1066719d918e8b870b61",
}


@pytest.mark.parametrize("width", HASHES)
def test_the_codes_of_a_library_are_those_of_every_version(width):
    """Other ones need another schema of library.json."""
    x = np.arange(40 * width).reshape(40, width) * 7919 % 1009 - 504.0
    found = encoded((x / np.sqrt((x * x).sum(1, keepdims=True))).astype(np.float32))
    assert hashlib.sha256(found.tobytes()).hexdigest() == HASHES[width]


@pytest.mark.parametrize("cpus", [1, 4])
def test_every_block_is_worked_on_once(cpus, monkeypatch):
    monkeypatch.setattr(blocks, "usable_cpus", lambda: cpus)
    for count, size in ((0, 3), (2, 3), (10, 3), (9, 3)):
        seen = []
        blocks.in_blocks(seen.append, count, size)
        assert sorted(i for part in seen for i in range(count)[part]) == [*range(count)]
    main = threading.get_ident()
    for where in (True, False) if cpus > 1 else (True,):

        def work(part, where=where):
            if (threading.get_ident() == main) == where:
                raise ValueError("of one thread")
            time.sleep(0.01)  # so that every thread gets blocks

        with pytest.raises(ValueError, match="of one thread"):
            blocks.in_blocks(work, 100, 1)


def test_few_vectors_are_read(monkeypatch):
    rng = np.random.default_rng(2)
    vectors = unit(rng.standard_normal((50_000, 512)))
    held, every, read = encoded(vectors), np.arange(50_000), []
    products = nearest.products

    def counted(vectors, query, ids):
        read.append(len(ids))
        return products(vectors, query, ids)

    monkeypatch.setattr(nearest, "products", counted)
    for query in rng.standard_normal((5, 512)):
        found = nearest.nearest(vectors, held, query, every, 10)
        best = [next(found) for _ in range(10)]
        assert best == np.argsort(-(vectors.astype(np.float64) @ query))[:10].tolist()
    assert sum(read) < 5 * 500


# --- the file ---


@pytest.mark.parametrize("sizes", [(1, 2, 3), (4, 4), (9, 0, 30, 1)])
def test_the_file_is_in_step_at_every_commit(tmp_path, sizes, monkeypatch):
    monkeypatch.setattr(store_, "_AT_ONCE", 4)
    monkeypatch.setattr(store_, "_OLD_AT_ONCE", 8)
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda f: (synced.append(os.readlink(f"/proc/self/fd/{f}")), fsync(f))
    )
    new_store(tmp_path, "{}")
    vectors = gaussian(np.random.default_rng(3), 24)
    done = 0
    with Store(tmp_path, 24) as store:
        for i, size in enumerate(sizes):
            parts = [store.add_vector(v, None) for v in vectors[done : done + size]]
            store.add_clip(bytes([i]) * 32, parts)
            done, synced[:] = done + size, []
            store.commit()
            assert (tmp_path / CODES).read_bytes() == encoded(vectors[:done]).tobytes()
            assert str(tmp_path / CODES) in synced
    for there in (0, 24, 24 * 5 + 3):
        os.truncate(tmp_path / CODES, there)
        synced.clear()
        with Store(tmp_path, 24):
            assert str(tmp_path / CODES) in synced
        assert (tmp_path / CODES).read_bytes() == encoded(vectors[:done]).tobytes()


@pytest.fixture
def place(tmp_path):
    """Five videos in a library of random vectors."""
    (tmp_path / "videos").mkdir()
    for i in range(5):
        make_clip(tmp_path / "videos" / f"{i:02}.mp4", frames=8 + i, size=(32, 48))
    run(tmp_path)
    return tmp_path


def run(place, **options):
    return embed_library(FakeSession(), [place / "videos"], place / "library", workers=1, **options)


def whole(place):
    """Whether the file holds the 8 bits of every vector and nothing else."""
    vectors = np.fromfile(place / "library" / VECTORS, "<f4").reshape(-1, 24)
    return (place / "library" / CODES).read_bytes() == encoded(vectors).tobytes()


def overwritten(path):
    with path.open("r+b") as file:
        file.seek(40)
        file.write(b"\x55\x54")


SPOILED = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
    "cut in a vector": lambda path: os.truncate(path, 3 * 24 + 5),
}


def test_a_run_writes_them_beside_the_vectors(place):
    library = open_library(place / "library")
    assert whole(place) and library.codes is not None
    assert (library.codes == encoded(library.vectors[:])).all()
    assert "codes" not in library.to_dict()
    make_clip(place / "videos" / "10.mp4", frames=20, size=(32, 48))
    run(place)
    assert whole(place) and len(open_library(place / "library").codes) == 6


@pytest.mark.parametrize("kind", SPOILED)
def test_the_next_run_makes_what_is_missing(place, kind):
    SPOILED[kind](place / "library" / CODES)
    library = open_library(place / "library")
    assert library.codes is None
    found = verify_library(place / "library")
    assert not found.count and any(CODES in note for note in found.notes)
    make_clip(place / "videos" / "10.mp4", frames=20, size=(32, 48))
    run(place)
    assert whole(place) and not verify_library(place / "library").notes


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("no"), os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_with_what_to_do(place, make):
    path = place / "library" / CODES
    path.unlink()
    make(path)
    for use in (lambda: open_library(place / "library"), lambda: run(place)):
        with pytest.raises(si.InputError, match="is a link, a folder or a device.*; delete it$"):
            use()


def test_runs_that_have_nothing_to_add_make_them_too(place):
    path = place / "library" / CODES
    os.chmod(place / "library" / VECTORS, 0o640)
    for use in (run, lambda place: migrate_library(place / "library", FakeSession())):
        path.unlink()
        use(place)
        assert whole(place) and path.stat().st_mode & 0o777 == 0o640


def test_those_of_an_earlier_version_are_made_anew(place):
    """That cut vectors off and left their 8 bits, so that they may be of others."""
    edit_json(place / "library" / PASSPORT, lambda p: p.update(schema="stan-infer/library/2"))
    (place / "library" / CODES).write_bytes(b"x" * 5 * 24)
    assert open_library(place / "library").codes is None
    assert any(CODES in note for note in verify_library(place / "library").notes)
    run(place)
    passport = json.loads((place / "library" / PASSPORT).read_text())
    assert whole(place) and passport["schema"] == "stan-infer/library/3"
    assert open_library(place / "library").codes is not None


def test_what_a_stopped_run_left_is_cut_off(place):
    with (place / "library" / CODES).open("ab") as file:
        file.write(b"x" * 100)
    assert len(open_library(place / "library").codes) == 5
    assert any(f"{CODES} ends with 100 bytes" in n for n in verify_library(place / "library").notes)
    run(place)
    make_clip(place / "videos" / "10.mp4", frames=20, size=(32, 48))
    run(place)
    assert whole(place)


def linked_hard(path):
    (path.parent.parent / "other").touch()
    os.link(path.parent.parent / "other", path)


@pytest.mark.parametrize(
    "make",
    [lambda p: p.write_bytes(b"mine"), lambda p: p.symlink_to("no"), os.mkfifo, linked_hard],
)
def test_a_file_of_that_name_alone_is_not_ours(tmp_path, make):
    (tmp_path / "library").mkdir()
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "00.mp4", frames=8, size=(32, 48))
    make(tmp_path / "library" / CODES)
    with pytest.raises(si.InputError, match=f"not empty and not a library: it holds {CODES}"):
        run(tmp_path)
    assert os.listdir(tmp_path / "library") == [CODES]


def test_codes_of_other_vectors_are_found(place):
    overwritten(place / "library" / CODES)
    found = verify_library(place / "library")
    assert found.count == 1 and "1 of 5 differ (the first: 1): delete it" in found.problems[0]
    with pytest.raises(si.CheckError, match="makes it again\\)$"):
        found.check()
    (place / "library" / CODES).unlink()
    run(place)
    assert whole(place) and not verify_library(place / "library").count


def test_a_changed_vector_is_one_problem(place):
    with (place / "library" / VECTORS).open("r+b") as file:
        file.seek(300)
        file.write(b"\x01")
    assert verify_library(place / "library").problems == (
        "vector 3 was changed after it was written",
    )


@pytest.fixture
def from_one_row(monkeypatch):
    monkeypatch.setattr(codes, "FEWEST", 1)


def like(library, row=2):
    """What is found for a row, and what is said of 8 bits."""
    said = []
    with FakeSession() as session:
        searcher = search.Searcher(library, session, say=said.append)
        hits = searcher.search([search.Term("like_row", str(row), 1.0)]).hits
    return hits, [sentence for sentence in said if "8 bits" in sentence]


def test_a_search_of_many_rows_reads_them(place, from_one_row, monkeypatch):
    library, used = open_library(place / "library"), []
    right = like(library)

    def seen(*given):
        used.append(1)
        return bounds(*given)

    monkeypatch.setattr(nearest, "bounds", seen)
    assert like(library) == right and used and not right[1]
    monkeypatch.setattr(codes, "FEWEST", 6)
    used.clear()
    assert like(library) == right and not used


class Broken:
    """Finds the package, which then does not load."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "numkong":
            raise RuntimeError("no such instruction")


def test_a_search_without_the_package_finds_the_same_and_says_so(place, from_one_row, monkeypatch):
    library = open_library(place / "library")
    right, _ = like(library)
    for module in (None, Broken):
        monkeypatch.setitem(sys.modules, "numkong", None)
        if module is not None:
            monkeypatch.delitem(sys.modules, "numkong")
            monkeypatch.setattr(sys, "meta_path", [module, *sys.meta_path])
        hits, (said,) = like(library)
        assert hits == right and said.startswith("note: ") and "[search]" in said


def test_a_search_without_the_file_finds_the_same_and_says_so(place, from_one_row):
    right, _ = like(open_library(place / "library"))
    (place / "library" / CODES).unlink()
    hits, (said,) = like(open_library(place / "library"))
    assert hits == right and "the next run of embed" in said


@pytest.mark.parametrize("byte", [b"\0", b"\x81", b"\x7f"])
def test_codes_of_nothing_end_a_search(place, from_one_row, byte):
    (place / "library" / CODES).write_bytes(byte * 5 * 24)
    library = open_library(place / "library")
    with pytest.raises(si.CheckError, match=f"/library/{CODES} is not of these vectors: delete it"):
        like(library)
    with pytest.raises(si.CheckError, match=f"{CODES} is not of these vectors"):
        library.check()


def test_a_changed_vector_is_found_by_a_search(place, from_one_row):
    vectors = np.memmap(place / "library" / VECTORS, "<f4", "r+", shape=(5, 24))
    vectors[2] = np.nan
    codes_of = encoded(np.array(vectors))
    assert (codes_of[2] == -128).all()
    (place / "library" / CODES).write_bytes(codes_of.tobytes())
    with pytest.raises(si.CheckError, match="vector 2 has not length 1"):
        like(open_library(place / "library"), row=1)
