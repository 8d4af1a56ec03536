"""Files of embeddings: read back by numpy, by our own reader and by pyarrow; memory; replacing."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest

from stan_infer.artefacts.npz_file import Field, read_npz
from stan_infer.errors import InputError
from stan_infer.library.embedding_file import check_embeddings, new_embeddings
from stan_infer.library.levels import normalised
from stan_infer.video.clip import Clip

INFO = {"engine": {"engine": "eager"}, "level": {"videos": "frame"}}
ODD = "caf\udce9.mp4"
RNG = np.random.default_rng(0)


def clip(i, frames=3):
    return Clip(np.empty(0, np.uint8), np.arange(frames) + i, 30 + i, "pyav", (64, 64))


def sha256(i):
    return hashlib.sha256(bytes([i % 256])).hexdigest()


def write(out, videos=(), texts=None):
    with new_embeddings(out, INFO, sources=()) as file:
        for i, features in enumerate(videos):
            frames = len(features) if features.ndim == 2 else 3
            file.add_video(f"a/{i}{ODD}", clip(i, frames), features, sha256(i))
        if texts is not None:
            file.add_texts(*texts)


def some_texts(level):
    ids = np.array([[49406, 5, 49407, 0], [49406, 49407, 0, 0]])
    shape = (2, 4, 8) if level == "token" else (2, 8)
    return ["one \udce9", "two"], ids, RNG.standard_normal(shape, np.float32)


@pytest.mark.parametrize("shape", [(8,), (3, 8)])
def test_npz_has_the_arrays_of_before_and_texts_where_they_were_given(tmp_path, shape):
    videos = RNG.standard_normal((5, *shape), np.float32)
    write(tmp_path / "v.npz", videos)
    with np.load(tmp_path / "v.npz", allow_pickle=False) as z:
        names = ["paths", "embeddings", "indices", "total_frames", "decoders", "sha256", "info"]
        assert z.files == names and z["sha256"].tolist() == [sha256(i) for i in range(5)]
        assert (z["embeddings"] == videos).all() and z["embeddings"].dtype == np.float32
        assert z["paths"][1] == "a/1caf\\xe9.mp4" and z["total_frames"].tolist()[:2] == [30, 31]
        assert z["indices"][2].tolist() == [2, 3, 4] and json.loads(str(z["info"])) == INFO
    fields = {"embeddings": Field("float32", (5, *shape)), "paths": Field("str", (5,))}
    assert (read_npz(tmp_path / "v.npz", fields)["embeddings"] == videos).all()
    given = some_texts("token")
    write(tmp_path / "v.npz", videos, given)
    write(tmp_path / "t.npz", texts=given)
    for name in ("v", "t"):
        with np.load(tmp_path / f"{name}.npz") as z:
            assert (z["text_embeddings"] == given[2]).all() and z["texts"][0] == "one \\xe9"
            assert (z["input_ids"] == given[1]).all() and ("paths" in z.files) == (name == "v")
    write(tmp_path / "t.npz", videos)  # each replaces the other kinds


def test_npy_has_its_facts_in_the_json_beside_it(tmp_path):
    videos = RNG.standard_normal((5, 3, 8), np.float32)
    write(tmp_path / "v.npy", videos)
    assert (np.load(tmp_path / "v.npy") == videos).all()
    facts = json.loads((tmp_path / "v.json").read_text())
    assert facts["schema"] == "stan-infer/embeddings/1" and facts["info"] == INFO
    data = (tmp_path / "v.npy").read_bytes()
    assert facts["array"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert facts["array"]["shape"] == [5, 3, 8] and len(facts["rows"]) == 5
    assert facts["rows"][1] == {
        "path": "a/1caf\\xe9.mp4", "indices": [1, 2, 3], "total_frames": 31, "decoder": "pyav",
        "sha256": sha256(1),
    }  # fmt: skip
    texts, ids, features = some_texts("video")
    write(tmp_path / "v.npy", texts=(texts, ids, features))
    facts = json.loads((tmp_path / "v.json").read_text())
    assert [r["text"] for r in facts["rows"]] == ["one \\xe9", "two"]
    assert facts["rows"][0]["input_ids"] == ids[0].tolist()


def test_parquet_has_a_row_for_every_vector(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "v.parquet"
    many = RNG.standard_normal((3000, 3, 8), np.float32)
    for videos in (many, many[:5, 0]):
        write(out, videos)
        table = pq.read_table(out)
        rows = np.stack(table["embedding"].to_numpy())
        assert (rows == videos.reshape(-1, 8)).all() and table["path"][0].as_py().endswith(
            "xe9.mp4"
        )
        wanted = [sha256(i) for i in range(len(videos))]
        assert (
            table["sha256"].to_pylist() == np.repeat(wanted, rows.size // len(videos) // 8).tolist()
        )
        assert ("frame" in table.column_names) == (videos.ndim == 3)
        assert json.loads(table.schema.metadata[b"stan_infer"]) == INFO
        assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[8]"
    texts, ids, features = some_texts("token")
    write(out, texts=(texts, ids, features))
    table = pq.read_table(out).to_pydict()
    assert table["text"] == ["one \\xe9"] * 3 + ["two"] * 2 and table["token"] == [0, 1, 2, 0, 1]
    assert table["token_id"] == [49406, 5, 49407, 49406, 49407]
    assert np.array_equal(table["embedding"][4], features[1, 1])
    pq.write_table(pq.read_table(out).replace_schema_metadata(None), out)
    with pytest.raises(InputError, match="not written by stan-infer embed"):
        write(out, many[:2])


@pytest.mark.parametrize("suffix", ["npz", "npy", "parquet"])
def test_memory_does_not_grow_with_the_vectors(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    one = RNG.standard_normal((12, 512), np.float32)
    tracemalloc.start()
    write(tmp_path / f"v.{suffix}", (one for _ in range(4000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4000 * one.nbytes / 4  # 98 MB of vectors; 9 MB are one group of Parquet's rows


def test_what_cannot_be_written_is_told_before_the_work(tmp_path):
    def check(name, videos=True, texts=False):
        check_embeddings(tmp_path / name, videos=videos, texts=texts, sources=())

    with pytest.raises(InputError, match=r"must end in \.npz, \.npy, \.parquet"):
        check("v.h5")
    with pytest.raises(InputError, match=r"holds one table: give videos or texts"):
        check("v.npy", texts=True)
    np.save(tmp_path / "mine.npy", np.ones(3))
    with pytest.raises(InputError, match="not written by stan-infer embed"):
        check("mine.npy")
    (tmp_path / "other.json").write_text('{"schema": "mine"}')
    with pytest.raises(InputError, match=r"other\.json will not be replaced"):
        check("other.npy")
    np.savez(tmp_path / "mine.npz", info=np.ones(3), embeddings=np.ones(3))
    with pytest.raises(InputError, match="not written by stan-infer embed"):
        check("mine.npz")


def test_a_failure_leaves_the_earlier_file(tmp_path):
    write(tmp_path / "v.npz", RNG.standard_normal((2, 8), np.float32))
    before = (tmp_path / "v.npz").read_bytes()
    with pytest.raises(InputError, match="are in one file"):
        write(tmp_path / "v.npz", [np.ones(8, np.float32), np.ones(9, np.float32)])
    assert (tmp_path / "v.npz").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["v.npz"]


def test_a_vector_without_a_length_is_told():
    found = normalised(np.array([[3.0, 4.0]], np.float32), "x")
    assert found.dtype == np.float32 and found == pytest.approx(np.array([[0.6, 0.8]]))
    with pytest.raises(InputError, match="x: a vector has the length 0"):
        normalised(np.zeros((2, 3)), "x")
