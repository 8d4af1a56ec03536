"""stan-infer embed: levels, texts and what the file says of itself."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import stan_infer as si
from stan_infer.artefacts.folder import sha256
from stan_infer.cli.embed_library import names_library
from stan_infer.library import embed
from stan_infer.text.tokenizer import tokenize
from stan_infer.video.windows import Windows
from tests.conftest import relative_error
from tests.video import broken_videos as make

SAME = 2e-6


@pytest.mark.parametrize("engine", ["eager", "ort", "openvino"])
def test_levels_are_frames_tokens_and_their_means(
    cli, checkpoint, artefact, videos, tmp_path, engine
):
    source = checkpoint if engine == "eager" else artefact
    texts = tmp_path / "texts.txt"
    texts.write_text("a red square\n\nnoise\n")
    got = {}
    for level in ("video", "frame", "token"):
        given = ("--level", level, "--texts", texts, "--text", "first", "--engine", engine)
        out = tmp_path / f"{level}.npz"
        (record,) = cli("embed", source, videos, *given, "-o", out, "--json").records
        assert (record["videos"], record["texts"]) == (3, 3)
        with np.load(out) as z:
            got[level] = {name: z[name] for name in z.files}
        info = json.loads(str(got[level]["info"]))
        assert info["engine"]["engine"] == engine and info["engine"]["precision"] == "fp32"
        (name, digest), = info["source"]["sha256"].items()  # fmt: skip
        assert digest == sha256(source if source.is_file() else source / name)
        assert info["level"]["videos"] == ("video" if level == "video" else "frame")
        assert got[level]["texts"].tolist() == ["first", "a red square", "noise"]
    frames, video = got["frame"]["embeddings"], got["video"]["embeddings"]
    assert frames.shape == (3, 8, 64) and relative_error(frames.mean(1), video) < SAME
    assert (got["token"]["embeddings"] == frames).all()
    tokens, ids = got["token"]["text_embeddings"], got["token"]["input_ids"]
    assert (ids == tokenize(["first", "a red square", "noise"], 32)).all()
    ends = tokens[np.arange(3), ids.argmax(1)]
    for level in ("video", "frame"):
        assert relative_error(ends, got[level]["text_embeddings"]) < SAME
    session = si.open_session(checkpoint)
    wanted = session.embed_text(["first", "a red square", "noise"])
    assert relative_error(got["video"]["text_embeddings"], wanted) < 1e-5


def test_the_default_is_what_the_head_scores(cli, checkpoint, videos, tmp_path):
    mug = ("--set", "head=mug", "--text", "a dog")
    cli("embed", checkpoint, videos, *mug, "-o", tmp_path / "m.npz")
    cli("embed", checkpoint, videos, "--text", "a dog", "-o", tmp_path / "v.npz", "--normalise")
    cli("embed", checkpoint, videos, *mug, "--level", "video", "-o", tmp_path / "w.npz")
    with np.load(tmp_path / "m.npz") as z:
        assert z["embeddings"].shape == (3, 8, 64) and z["text_embeddings"].shape == (1, 32, 64)
    with np.load(tmp_path / "v.npz") as z, np.load(tmp_path / "w.npz") as w:
        for name in ("embeddings", "text_embeddings"):
            assert np.linalg.norm(z[name], axis=-1) == pytest.approx(np.ones(len(z[name])))
            own = w[name] / np.linalg.norm(w[name], axis=-1, keepdims=True)
            assert relative_error(own, z[name]) < SAME
        assert json.loads(str(z["info"]))["normalised"] is True


@pytest.mark.parametrize("suffix", ["npz", "npy", "parquet"])
def test_rows_have_the_hash_of_their_video(cli, checkpoint, videos, tmp_path, suffix):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    paths, out = sorted(videos.glob("*.mp4")), tmp_path / f"v.{suffix}"
    cli("embed", checkpoint, paths[0], bad, videos, "--level", "frame", "-o", out, code=2)
    wanted = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (paths[0], *paths)]
    if suffix == "npz":
        found = np.load(out)["sha256"].tolist()
    elif suffix == "npy":
        found = [r["sha256"] for r in json.loads(out.with_suffix(".json").read_text())["rows"]]
    else:
        found = pytest.importorskip("pyarrow.parquet").read_table(out)["sha256"].to_pylist()[::8]
    assert found == wanted
    assert si.embed_videos(checkpoint, videos, workers=1).sha256 == tuple(wanted[1:])


def test_a_video_that_changes_while_it_is_read_has_no_row(
    cli, checkpoint, videos, tmp_path, monkeypatch
):
    own = tmp_path / "videos"
    shutil.copytree(videos, own)
    real = embed.embed_videos

    def changing(*given, **more):
        for reading in real(*given, **more):
            if reading.path.name == "clip1.mp4":
                reading.path.write_bytes(b"another")
            yield reading

    monkeypatch.setattr(embed, "embed_videos", changing)
    out = tmp_path / "v.npz"
    cli("embed", checkpoint, own, "-o", out, code=2, says="clip1.mp4: it changed while it was read")
    assert [p[-9:] for p in np.load(out)["paths"]] == ["clip0.mp4", "clip2.mp4"]


def columns(path):
    """The rows of a file of parts: paths, starts, ends, hashes, vectors."""
    if path.suffix == ".npz":
        with np.load(path) as z:
            names = ("paths", "start_s", "end_s", "sha256", "embeddings")
            return [z[name].tolist() for name in names]
    if path.suffix == ".npy":
        rows = json.loads(path.with_suffix(".json").read_text())["rows"]
        facts = [[r[k] for r in rows] for k in ("path", "start_s", "end_s", "sha256")]
        return [*facts, np.load(path).tolist()]
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    names = ("path", "start_s", "end_s", "sha256", "embedding")
    return [table[name].to_pylist() for name in names]


@pytest.mark.parametrize("windows", ["0.4:0.2", "0.4:0.2:grid"])
def test_parts_of_videos_are_the_rows_of_a_library(cli, checkpoint, videos, tmp_path, windows):
    more = ("--frames", 4, "--windows", windows)
    cli("embed", checkpoint, videos, *more, "-o", tmp_path / "library")
    library = si.open_library(tmp_path / "library")
    wanted = [[p for (p,) in library.videos], library.start.tolist(), library.end.tolist()]
    assert len(wanted[0]) > len(set(wanted[0])) == 3
    hashes = [hashlib.sha256(open(p, "rb").read()).hexdigest() for p in wanted[0]]
    for end in ("npz", "npy", "parquet"):
        out = tmp_path / f"parts.{end}"
        given = ("embed", checkpoint, videos / "clip0.mp4", videos, *more, "--normalise")
        (record,) = cli(*given, "-o", out, "--json").records
        assert (record["videos"], record["rows"]) == (3, len(wanted[0]))
        assert record["windows"] == windows
        *facts, vectors = columns(out)
        assert facts == [*wanted, hashes]
        np.testing.assert_array_equal(np.array(vectors, "f4"), library.vectors[library.ids])
        told_of = {"seconds": 0.4, "stride": 0.2, "start": 0.0, "end": None}
        assert told(out)["windows"] == told_of | {"grid": windows.endswith("grid")}
        cli("embed", checkpoint, videos, "-o", out)  # replaced by a file of another kind
        assert told(out)["windows"] is None


def test_parts_from_python_and_of_levels(checkpoint, videos, tmp_path):
    parts = Windows(seconds=0.4, stride=0.2, grid=True)
    one = {"workers": 1, "frames": 4, "windows": parts}
    found = si.embed_videos(checkpoint, videos, tmp_path / "f.parquet", level="frame", **one)
    assert found.embeddings.shape == (len(found.start), 4, 64) and found.start[1] == 0.2
    assert "parts, float32" in str(found) and (found.end > found.start).all()
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "f.parquet")
    assert table["start_s"].to_pylist() == np.repeat(found.start, 4).tolist()
    assert table["frame"].to_pylist() == found.indices.ravel().tolist()
    whole = si.embed_videos(checkpoint, videos, workers=1)
    assert np.isnan(whole.start).all() and "3 videos, float32" in str(whole)


def test_parts_that_cannot_be_read_have_no_rows(cli, checkpoint, tmp_path, monkeypatch):
    film = make.make_clip(tmp_path / "film.mp4", frames=100, gop=25, x264="scenecut=0:bframes=0")
    make.damage(film, tmp_path / "hurt.mp4", packet=60)
    (tmp_path / "no.mp4").write_text("no video")
    paths = [tmp_path / f"{name}.mp4" for name in ("hurt", "no", "film")]
    out = tmp_path / "v.npz"
    done = cli("embed", checkpoint, *paths, "--windows", "1:grid", "-o", out, "--json", code=2)
    (record,) = done.records
    assert (record["videos"], record["failed"]) == (2, 2) and record["rows"] == 7
    assert [f["video"] for f in record["failures"]] == list(map(str, paths[:2]))
    (hurt, *_), starts, *_ = columns(out)
    assert hurt.endswith("hurt.mp4") and starts == [0, 1, 3, 0, 1, 2, 3]
    real = embed.embed_videos

    def changing(*given, **more):
        for i, reading in enumerate(real(*given, **more)):
            if i == 2:  # within the film
                reading.path.write_bytes(b"another")
            yield reading

    monkeypatch.setattr(embed, "embed_videos", changing)
    given = ("embed", checkpoint, film, *paths[:1], "--windows", "1", "-o", out)
    cli(*given, code=2, says="film.mp4: it changed while it was read")
    assert {p[-8:] for p in columns(out)[0]} == {"hurt.mp4"}
    cli(*given[:2], "--text", "a", *given[4:], code=2, says="--windows is about videos")
    cli(*given, "--retry-failed", code=2, says="--retry-failed is of a library")


def test_texts_alone_need_no_video(cli, artefact, tmp_path):
    (record,) = cli(
        "embed", artefact, "--text", "a dog", "-o", tmp_path / "t.npy", "--json"
    ).records
    assert (record["videos"], record["texts"]) == (0, 1)
    assert np.load(tmp_path / "t.npy").shape == (1, 64)
    assert json.loads((tmp_path / "t.json").read_text())["info"]["level"]["texts"] == "text"


def test_wrong_words_are_told_before_the_work(cli, checkpoint, videos, tmp_path, monkeypatch):
    def no_work(*given, **more):
        raise AssertionError("the work began")

    out, bad = ("-o", tmp_path / "v.npz"), tmp_path / "bad.mp4"
    bad.write_text("no video")
    done = cli("embed", checkpoint, bad, *out, code=2, says="none of the 1 videos could be read: ")
    assert "bad.mp4" in done.err.splitlines()[-1] and not (tmp_path / "v.npz").exists()
    cli("embed", checkpoint, videos, "--level", "frames", *out, code=2, says="did you mean 'frame'")
    monkeypatch.setattr("stan_infer.library.embeddings.opened", no_work)
    cli("embed", checkpoint, *out, code=2, says="nothing to embed")
    cli("embed", checkpoint, videos, "--level", "token", *out, code=2, says="is of texts")
    cli("embed", checkpoint, "--text", " ", *out, code=2, says="blank")
    both = ("--text", "a", "-o", tmp_path / "v.npy")
    cli("embed", checkpoint, videos, *both, code=2, says="holds one table")
    shutil.copyfile(videos / "clip0.mp4", tmp_path / "t.npz")
    own = ("--texts", tmp_path / "t.npz", "-o", tmp_path / "t.npz")
    cli("embed", checkpoint, *own, code=2)


def told(path):
    """What a file of vectors says of itself."""
    if path.suffix == ".npz":
        with np.load(path) as z:
            return json.loads(str(z["info"]))
    if path.suffix == ".npy":
        return json.loads(path.with_suffix(".json").read_text())["info"]
    metadata = pytest.importorskip("pyarrow.parquet").read_schema(path).metadata
    return json.loads(metadata[b"stan_infer"])


@pytest.mark.parametrize("end", ["npz", "npy", "parquet"])
def test_how_videos_were_read_is_in_the_file(cli, checkpoint, videos, tmp_path, end):
    out = tmp_path / f"v.{end}"
    (first,) = cli("embed", checkpoint, videos, "-o", out, "--json").records
    usual = told(out)
    assert first["info"] == usual
    cli("embed", checkpoint, videos, "-o", out, "--frames", "4")
    fewer = told(out)
    assert (usual["reading"]["frames"], fewer["reading"]["frames"]) == (8, 4)
    assert fewer["config"]["frames"] == 4 and fewer["reading"]["decoder"].startswith("pyav ")
    cli("embed", checkpoint, videos, "-o", out, "--set", "short_side=80")
    assert told(out)["settings"] == {"short_side": "80"}
    models = {info["source"]["model"] for info in (usual, fewer, told(out))}
    assert len(models) == 3 and all(isinstance(m, str) for m in models)


def test_a_model_has_one_name_wherever_it_is_exported(cli, checkpoint, videos, tmp_path):
    found = []
    for name in ("first", "second"):
        cli("export", checkpoint, "-o", tmp_path / name, "--frames", "8", "--batch", "1")
        out = tmp_path / f"{name}.npz"
        cli("embed", tmp_path / name, videos, "-o", out)
        found.append(told(out)["source"])
    assert found[0]["model"] == found[1]["model"]
    assert found[0]["sha256"] != found[1]["sha256"], "the manifests name other commands"
    assert {f["checkpoint_sha256"] for f in found} == {sha256(checkpoint)}


@pytest.mark.parametrize(
    ("out", "right"),
    [("lib", True), ("lib.v2", False), ("lib.v2/", True), ("there.v2", True), ("x.npz", False)],
)
def test_which_names_are_libraries(tmp_path, monkeypatch, out, right):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.v2").mkdir()
    assert names_library(out) is right
