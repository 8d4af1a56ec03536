"""All engines give the same numbers, and bad input the same words."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
import torch

import stan_infer as si
from stan_infer.engines import ort_session
from stan_infer.engines.open import ENGINES, FOLDER
from stan_infer.errors import CheckError, InputError, MissingError
from stan_infer.network.model import Stan
from tests.conftest import GOLDEN_CASES, clips, relative_error, tiny_config
from tests.exported import exported, rewrite
from tests.network.test_model import load_golden

FP32 = 1e-5
RUNTIME = 1e-4  # another order of sums than the authors', through a deep or outlier-ridden network
FOLDER_ENGINES = [e.name for e in ENGINES.values() if e.takes == FOLDER and "cpu" in e.devices]


@pytest.fixture(scope="module", params=["eager", *FOLDER_ENGINES])
def session(request, tiny_model, folder):
    source = tiny_model if request.param == "eager" else folder
    return si.open_session(source, engine=request.param)


@pytest.fixture(params=FOLDER_ENGINES)
def engine(request):
    return request.param


def ids(q=3, length=12):
    values = np.random.default_rng(0).integers(1, 126, (q, length))
    values[:, 5], values[:, 6:] = 127, 0
    return values


@pytest.mark.parametrize("name", ENGINES)
def test_no_engine_takes_a_wrong_count_of_threads(name, tiny_model, folder):
    source = folder if ENGINES[name].takes == FOLDER else tiny_model
    for threads in (-3, 0, 4097, "1", True, 2.5):
        with pytest.raises(InputError, match=f"threads is {threads!r}; give a whole number"):
            si.open_session(source, name, threads=threads)


def test_shapes_and_types(session):
    video, text = session.embed_video(clips(2, 5, 16)), session.embed_text(ids())
    scores = session.score(ids(), clips(2, 5, 16))
    assert (tuple(video.shape), tuple(text.shape), tuple(scores.shape)) == (
        (2, 24),
        (3, 24),
        (3, 2),
    )
    assert all(x.__class__ is np.ndarray for x in (video, text, scores))
    assert {x.dtype for x in (video, text, scores)} == {np.dtype(np.float32)}
    assert np.abs(scores).max() <= 1


def test_tensors_where_the_engine_runs_in_torch(session):
    calls = (
        lambda **o: session.embed_video(clips(2, 5, 16), **o),
        lambda **o: session.embed_text(ids(), **o),
        lambda **o: session.score(ids(), clips(2, 5, 16), **o),
    )
    for call in calls:
        if session.describe()["engine"] == "eager":
            tensor = call(as_tensor=True)
            assert tensor.dtype == torch.float32 and np.array_equal(tensor.numpy(), call())
        else:
            with pytest.raises(InputError, match="engine .* does not run in torch.*from_numpy"):
                call(as_tensor=True)


def test_one_session_takes_any_batch_and_frames(session, tiny_model):
    for b, t in ((1, 1), (1, 2), (2, 3), (3, 5), (7, 9), (1, 64)):
        video = clips(b, t, 16, seed=t)
        wanted = tiny_model.encode_video(torch.from_numpy(video)).mean(1)
        assert relative_error(session.embed_video(video), wanted) < FP32


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), r"\[B,T,H,W,3\]"),
        (np.zeros((1, 2, 3, 16, 16), np.uint8), r"shape \[1, 2, 3, 16, 16\]"),
        (np.zeros((1, 2, 16, 17, 3), np.uint8), r"\[B, T, 16, 16, 3\]"),
        (np.zeros((1, 65, 16, 16, 3), np.uint8), "65 frames.* 64 rows"),
        (np.zeros((1, 0, 16, 16, 3), np.uint8), "0 frames"),
        (np.zeros((0, 2, 16, 16, 3), np.uint8), "B is 0"),
        (np.zeros((1, 2, 16, 16, 3), np.int64), "int64"),
    ],
)
def test_bad_clips(session, video, message):
    with pytest.raises(InputError, match=message):
        session.embed_video(video)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (np.zeros((2, 21), np.int64), "21 long; the text tower has 20"),
        (np.full((1, 4), 128), "128; allowed are 0 to 127"),
        (np.full((1, 4), -1), "span -1"),
        (np.zeros(4, np.int64), r"shape \[4\]"),
        (np.zeros((1, 4)), "float64"),
        (["a dog runs"], "vocabulary has 128 entries"),
    ],
)
def test_bad_texts(session, texts, message):
    with pytest.raises(InputError, match=message):
        session.embed_text(texts)


def test_floats_are_the_layout_that_the_dtype_says(tiny_model):
    session = si.open_session(tiny_model)
    pixels = torch.from_numpy(clips(2, 3, 16))
    floats = tiny_model.normalize(pixels)
    assert tuple(floats.shape) == (2, 3, 3, 16, 16)
    assert np.array_equal(session.embed_video(floats), session.embed_video(pixels))
    with pytest.raises(InputError, match=r"float clips are \[B,T,3,H,W\]"):
        session.embed_video(torch.zeros(1, 2, 16, 16, 3))


def test_the_float_graph(tiny_model, engine):
    session = si.open_session(exported(tiny_model, input="float"), engine=engine)
    pixels = torch.from_numpy(clips(2, 3, 16))
    wanted = si.open_session(tiny_model).embed_video(pixels)
    got = session.embed_video(tiny_model.normalize(pixels).numpy())
    assert relative_error(got, wanted) < FP32
    assert np.array_equal(session.embed_video(pixels.numpy()), got)


@pytest.mark.parametrize("head", ["mug", "mug_frame_token"])
def test_mug_heads_score_tokens_and_frames(tiny_model, head):
    model = Stan(tiny_config(head=head))
    model.load_state_dict(tiny_model.state_dict())
    eager, folder = si.open_session(model.eval()), exported(model)
    video = clips(2, 4, 16)
    assert tuple(eager.embed_video(video).shape) == (2, 4, 24)
    assert tuple(eager.embed_text(ids()).shape) == (3, 12, 24)
    for engine in FOLDER_ENGINES:
        scores = si.open_session(folder, engine=engine).score(ids(), video)
        assert relative_error(scores, eager.score(ids(), video)) < RUNTIME


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.1), ("fp16", 0.02)])
def test_reduced_precision_runs_as_asked_and_leaves_the_model_alone(tiny_model, precision, error):
    session = si.open_session(tiny_model, precision=precision)
    assert session.describe()["precision"] == precision
    got = session.embed_video(clips(2, 5, 16))
    wanted = si.open_session(tiny_model).embed_video(clips(2, 5, 16))
    assert got.dtype == np.float32
    assert 1e-6 < relative_error(got, wanted) < error
    assert tiny_model.visual.proj.dtype == torch.float32


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_a_folder_equals_the_authors(golden, name, engine):
    _, arrays = load_golden(golden, name)
    session = si.open_session(exported(load_golden(golden, name)[0]), engine=engine)
    for key in (k for k in arrays if k.endswith("_frames_u8")):
        video = np.ascontiguousarray(arrays[key].transpose(0, 1, 3, 4, 2))
        wanted = arrays[key.replace("_frames_u8", "_video")]
        assert relative_error(session.embed_video(video), wanted) < RUNTIME
    if "text_ids" in arrays:
        assert relative_error(session.embed_text(arrays["text_ids"]), arrays["text"]) < RUNTIME
    if "score_T" in arrays:
        video = arrays[f"T{int(arrays['score_T'])}_frames_u8"].transpose(0, 1, 3, 4, 2)
        scores = session.score(arrays["text_ids"], np.ascontiguousarray(video))
        assert relative_error(scores, arrays["sim_mean"]) < RUNTIME


@pytest.mark.parametrize("engine", ["eager", *FOLDER_ENGINES])
@pytest.mark.parametrize(("head", "key"), [("mean", "sim_mean"), ("mug", "mug_simple")])
def test_end_to_end_equals_the_authors(golden, engine, head, key):
    """Videos and strings in, scores out, through the public functions alone."""
    arrays = np.load(golden / "e2e.npz")
    source, settings = golden / "d_fullvocab.pth", {"heads": 1, "text_heads": 1, "frames": 8}
    settings |= {"head": head}
    if engine != "eager":
        source, settings = exported(si.load_model(source, settings)), None
    session = si.open_session(source, engine=engine, settings=settings)
    paths = [(golden / "clips" / str(n)).with_suffix(".mp4") for n in arrays["clips"]]
    video = np.stack([session.read_clip(p) for p in paths])
    # The last two texts are cut off in the release: its rule is asked for by name.
    ids = si.tokenize([str(t) for t in arrays["texts"]], 32, truncation="authors")
    assert np.array_equal(ids, arrays["text_ids"])
    scores = np.asarray(session.score(ids, video))
    assert relative_error(scores, arrays[key]) < (FP32 if engine == "eager" else RUNTIME)


@pytest.mark.parametrize(
    ("source", "engine", "message"),
    [
        ("model", "egaer", "did you mean 'eager'"),
        ("model", "tensorrt", "engine 'tensorrt' is unknown"),
        ("model", "ort", "takes an exported folder.*stan-infer export"),
        ("model", "openvno", "did you mean 'openvino'"),
        ("model", "openvino", "engine openvino takes an exported folder.*stan-infer export"),
        ("folder", "eager", "takes a checkpoint"),
    ],
)
def test_wrong_pairs_of_source_and_engine(tiny_model, folder, source, engine, message):
    with pytest.raises(InputError, match=message):
        si.open_session(tiny_model if source == "model" else folder, engine=engine)


def test_what_is_not_here_is_missing_and_never_replaced(tiny_model, folder):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: nothing is missing")
    with pytest.raises(MissingError, match="finds no GPU"):
        si.open_session(tiny_model, device="cuda")
    with pytest.raises(MissingError, match="CUDAExecutionProvider"):
        si.open_session(folder, engine="ort", device="cuda")
    for source, engine in ((tiny_model, "eager"), (folder, "ort")):
        with pytest.raises(InputError, match="device 'gpu' is unknown"):
            si.open_session(source, engine=engine, device="gpu")
    for engine in FOLDER_ENGINES:
        with pytest.raises(InputError, match="fp32, not fp16.*--precision fp16"):
            si.open_session(folder, engine=engine, precision="fp16")
        with pytest.raises(InputError, match="fp32, not int8: stan-infer calibrate .*int8"):
            si.open_session(folder, engine=engine, precision="int8")
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        si.open_session(tiny_model, precision="bf61")


def test_many_texts_are_embedded_in_parts(session):
    many = ids(600)
    whole = session.embed_text(many)
    parts = [np.asarray(session.embed_text(many[i : i + 200])) for i in (0, 200, 400)]
    assert tuple(whole.shape) == (600, 24)
    assert relative_error(whole, np.concatenate(parts)) < FP32


def test_what_follows_the_end_token_is_not_computed_and_changes_nothing(
    session, tiny_model, monkeypatch
):
    lengths = []
    if session.describe()["engine"] == "eager":
        encode = tiny_model.encode_text
        monkeypatch.setattr(
            tiny_model, "encode_text", lambda ids: lengths.append(ids.shape[1]) or encode(ids)
        )
    else:
        run = session._run
        monkeypatch.setattr(
            session,
            "_run",
            lambda role, name, feeds, *more: (
                lengths.append(feeds["input_ids"].shape[1]) or run(role, name, feeds, *more)
            ),
        )
    cuts = session.describe()["engine"] in ("eager", "ort")
    for ends, needed in (([5, 5, 5], 6), ([1, 9, 4], 10), ([11, 2, 2], 12), ([0, 0, 0], 1)):
        values = np.random.default_rng(0).integers(1, 126, (3, 12))
        for row, end in zip(values, ends, strict=True):
            row[end], row[end + 1 :] = 127, 127  # what follows is as large
        with torch.inference_mode():
            wanted = Stan.encode_text(tiny_model, torch.from_numpy(values))
        assert relative_error(session.embed_text(values), wanted) < FP32
        least = 1 if session.describe()["engine"] == "eager" else 2  # as its graph says
        assert lengths.pop() == (max(needed, least) if cuts else 12)
    values = ids(300)
    values[256:] = ids(44, 12)[:, ::-1]  # those of the second call end later
    values[256:, -1] = 127
    with torch.inference_mode():
        wanted = Stan.encode_text(tiny_model, torch.from_numpy(values))
    assert relative_error(session.embed_text(values), wanted) < FP32


def test_threads_wait_asleep_where_others_need_the_cores(folder, tiny_model, monkeypatch):
    """Only ONNX Runtime's threads spin; the other engines take the option and need not know it."""
    import onnxruntime

    settings, real = [], onnxruntime.SessionOptions.add_session_config_entry

    def record(options, name, value):
        settings.append((name, value))
        real(options, name, value)

    monkeypatch.setattr(onnxruntime.SessionOptions, "add_session_config_entry", record)
    asleep = ("session.intra_op.allow_spinning", "0")
    video = clips(2, 5, 16)
    expected = si.open_session(folder).embed_video(video)
    assert asleep not in settings
    np.testing.assert_array_equal(
        si.open_session(folder, yielding=True).embed_video(video), expected
    )
    assert asleep in settings
    si.open_session(tiny_model, yielding=True)


def test_threads_are_those_asked_for(folder, engine):
    session = si.open_session(folder, engine=engine, threads=1)
    assert session.describe()["threads"] == 1


@pytest.mark.parametrize(
    ("gflop", "cpus", "right"),
    [(0.2, 8, 1), (1, 8, 1), (1.2, 8, 2), (7.5, 8, None), (0.2, 1, None)],
)
def test_beside_decoders_a_small_model_takes_few_threads(folder, monkeypatch, gflop, cpus, right):
    monkeypatch.setattr(ort_session, "video_flops", lambda config, frames: gflop * 1e9)
    monkeypatch.setattr(ort_session, "usable_cpus", lambda: cpus)
    seen, real = [], ort_session.OrtGraph.open

    def record(path, *, threads, **options):
        seen.append(threads)
        return real(path, threads=threads, **options)

    monkeypatch.setattr(ort_session.OrtGraph, "open", record)
    for words, given in (
        ({"yielding": True}, right),
        ({"yielding": True, "threads": 3}, 3),
        ({}, None),
    ):
        seen.clear()
        si.open_session(folder, **words).close()
        assert set(seen) == {given}


@pytest.fixture
def tampered(folder, tmp_path):
    """A copy of the folder whose video graph or manifest was changed, with hashes that agree."""

    def change(edit_graph=None, edit_manifest=lambda manifest: None):
        copy = shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
        if edit_graph:
            proto = onnx.load(copy / "video.onnx")
            edit_graph(proto)
            (copy / "video.onnx").write_bytes(proto.SerializeToString())
        rewrite(copy, edit_manifest)
        return copy

    return change


def external(location):
    def edit(proto):
        tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return edit


@pytest.mark.parametrize("location", ["../x", "/etc/passwd", "video.onnx.data", "tokenizer.json"])
def test_weights_come_from_listed_files_only(tampered, engine, location):
    with pytest.raises(InputError, match=rf"reads weights from '{location}'.* nothing was opened"):
        si.open_session(tampered(external(location)), engine=engine)


def test_only_onnx_files_are_opened(folder, tmp_path, engine):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "video.onnx").rename(copy / "video.ort")
    rewrite(copy, lambda manifest: manifest["graphs"][0].update(file="video.ort"))
    with pytest.raises(InputError, match=r"'video.ort' is not an \.onnx file"):
        si.open_session(copy, engine=engine)


def test_a_graph_that_no_runtime_can_open(tampered, engine):
    def unknown(proto):
        proto.graph.node[0].op_type = "NoSuchOperator"

    with pytest.raises(InputError, match=r"video\.onnx has the operation 'NoSuchOperator', which"):
        si.open_session(tampered(unknown), engine=engine)


def test_folders_of_earlier_versions_open(tampered, folder, tiny_model, engine):
    """Norms without a bias, IR 10 whatever the opset, no oldest runtime in the manifest.

    And the config's hash as of schema 1.0, in one graph alone, and fewer facts in the manifest.
    """
    config = tiny_model.config.to_dict()
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()

    def old_form(proto):
        proto.ir_version = 10
        (note,) = proto.metadata_props
        note.value = digest
        norms = [n for n in proto.graph.node if n.op_type == "LayerNormalization"]
        for node in norms:
            if node.input[2].startswith("constant/"):
                del node.input[2]
        assert {len(n.input) for n in norms} == {2, 3}

    def old_manifest(manifest):
        for graph in manifest["graphs"]:
            del graph["min_onnxruntime"]
        manifest["schema"] = "1.0"
        del manifest["preprocess"]["sampling"], manifest["text"]["clean"]

    edited = tampered(old_form, lambda m: (old_manifest(m), m["model"].update(mug_tau=9.0)))
    with pytest.raises(CheckError, match="'model' in manifest.json is not what video.onnx was"):
        si.open_session(edited, engine=engine)
    edited = tampered(None, lambda m: (old_manifest(m), m.update(schema="1.1")))
    with pytest.raises(InputError, match=r"preprocess\.sampling is missing"):
        si.open_session(edited, engine=engine)
    old = si.open_session(tampered(old_form, old_manifest), engine=engine)
    new, video = si.open_session(folder, engine=engine), clips(2, 3, 16)
    assert relative_error(old.embed_video(video), new.embed_video(video)) < FP32


def test_a_graph_that_does_not_fit_the_config(tampered, engine):
    def renamed(proto):
        old = proto.graph.output[0].name
        proto.graph.output[0].name = "other"
        for node in proto.graph.node:
            node.output[:] = ["other" if n == old else n for n in node.output]
            node.input[:] = ["other" if n == old else n for n in node.input]

    with pytest.raises(InputError, match=r"video\.onnx is not the graph that manifest\.json desc"):
        si.open_session(tampered(renamed), engine=engine)
    for name, value in (("embed_dim", 23), ("image_size", 8), ("temperature", 0.5)):
        other = tampered(None, lambda m, name=name, value=value: m["model"].update({name: value}))
        with pytest.raises(CheckError, match="'model' in manifest.json is not what video.onnx was"):
            si.open_session(other, engine=engine)
    longer = tampered(None, lambda m: m["graphs"][0]["dims"].update(frames=[1, 65]))
    with pytest.raises(InputError, match="frames 1 to 65; the model has 1 to 64"):
        si.open_session(longer, engine=engine)


def test_sizes_outside_the_manifest_are_refused(tampered, engine):
    def narrow(manifest):
        graphs = {g["role"]: g for g in manifest["graphs"]}
        graphs["video"]["dims"] |= {"batch": [1, 2], "frames": [4, 8]}
        graphs["text"]["dims"] |= {"length": [2, 12]}

    session = si.open_session(tampered(None, narrow), engine=engine)
    for video, message in (((3, 4), "3 clips.* takes 1 to 2"), ((1, 3), "3 frames.* 4 to 8")):
        with pytest.raises(InputError, match=message):
            session.embed_video(clips(*video, 16))
    for length in (1, 13):
        with pytest.raises(InputError, match=f"{length} long; this exported folder takes 2 to 12"):
            session.embed_text(np.ones((1, length), np.int64))
    assert session.embed_video(clips(2, 8, 16)).shape == (2, 24)


@pytest.mark.parametrize(
    ("keys", "value"),
    [(("resize", "filter"), "bicubic"), (("resize", "antialias"), 1), (("crop",), "none"),
     (("resize",), "none"), (("sampling", "rule"), "random")],
)  # fmt: skip
def test_another_rule_for_clips_is_refused(tampered, keys, value):
    def other(manifest):
        entry = manifest["preprocess"]
        for key in keys[:-1]:
            entry = entry[key]
        entry[keys[-1]] = value

    with pytest.raises(InputError, match=rf"preprocess\.{'.'.join(keys)} is .* it must be"):
        si.open_session(tampered(edit_manifest=other), engine="ort")


def test_a_folder_of_one_tower(tiny_model, engine):
    session = si.open_session(exported(tiny_model, tower="video"), engine=engine)
    assert session.embed_video(clips(1, 2, 16)).shape == (1, 24)
    with pytest.raises(InputError, match="holds no text graph"):
        session.embed_text(ids())
    session = si.open_session(exported(tiny_model, tower="text"), engine=engine)
    assert session.embed_text(ids()).shape == (3, 24)
    with pytest.raises(InputError, match="holds no video graph"):
        session.embed_video(clips(1, 2, 16))
