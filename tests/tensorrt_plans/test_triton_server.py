"""Model repositories for Triton Inference Server, against its published schema."""

import json
import os
import shutil

import numpy as np
import pytest

from stan_infer.artefacts.folder import read_artefact
from stan_infer.engines.ort_session import inference_session
from stan_infer.errors import CheckError, InputError
from stan_infer.export import onnx_graph
from stan_infer.export.export_model import export_model
from stan_infer.export.to_triton_server import EnumValue, text_format, write_repository
from stan_infer.network.model import Stan, init_random
from stan_infer.tensorrt_plans.build import build_plans
from stan_infer.tensorrt_plans.options import PlanOptions
from stan_infer.text.vocabulary import CLIP_LICENCE
from tests.conftest import python, relative_error, tiny_config
from tests.exported import exported as make_exported

model_config_pb2 = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason='tritonclient is not here: pip install ".[dev]"'
)


triton_to_np_dtype = pytest.importorskip("tritonclient.utils").triton_to_np_dtype


def read(folder):
    """config.pbtxt by Triton's own schema; unknown fields and wrong types do not parse."""
    from google.protobuf import text_format as reader

    text = (folder / "config.pbtxt").read_text()
    return reader.Parse(text, model_config_pb2.ModelConfig())


def sizes(values):
    return {v.name: list(v.dims) for v in values}


def test_every_model_parses_and_says_what_the_graph_takes(exported, tmp_path):
    artefact = read_artefact(exported)
    names = write_repository(artefact, tmp_path / "repository")
    assert names == ["preprocess", "text", "video", "video_pipeline"]
    configs = {name: read(tmp_path / "repository" / name) for name in names}
    video, text, pixels = (configs[n] for n in ("video", "text", "preprocess"))
    for name, config in configs.items():
        assert config.name == name
    assert video.backend == "onnxruntime" and video.max_batch_size == 32
    assert sizes(video.input) == {"video": [-1, 16, 16, 3]}
    assert sizes(video.output) == {"video_embeds": [24], "frame_embeds": [-1, 24]}
    assert video.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert video.HasField("dynamic_batching") and video.instance_group[0].count == 1
    assert text.max_batch_size == 256 and sizes(text.input) == {"input_ids": [-1]}
    assert pixels.max_batch_size == 0 and sizes(pixels.input) == {"frames": [-1, -1, -1, 3]}
    for role in ("video", "text", "preprocess"):
        served = tmp_path / "repository" / role / "1" / "model.onnx"
        assert served.read_bytes() == (exported / f"{role}.onnx").read_bytes()
    marker = json.loads((tmp_path / "repository" / "stan_infer.json").read_text())
    assert marker["preprocess"]["sampling"] and marker["models"] == names


@pytest.fixture(scope="module")
def parts(tiny_model, tmp_path_factory):
    """The repository of a folder with trunk and branch."""
    place = tmp_path_factory.mktemp("parts") / "r"
    names = write_repository(read_artefact(make_exported(tiny_model, split=True)), place)
    assert names == sorted(
        ["branch", "frame_pipeline", "preprocess", "preprocess_frames", "text", "trunk", "video"]
        + ["video_pipeline"]
    )
    return place


@pytest.mark.parametrize(
    ("ensemble", "names"),
    [
        ("video_pipeline", ("preprocess", "video")),
        ("frame_pipeline", ("preprocess_frames", "trunk")),
    ],
)
def test_the_ensemble_fits_its_models(parts, ensemble, names):
    """Names and shapes join up as Triton checks them: with the batch axis where one has none."""
    models = {n: read(parts / n) for n in names}
    pipeline = read(parts / ensemble)
    assert (parts / ensemble / "1/.keep").is_file()
    assert [step.model_name for step in pipeline.ensemble_scheduling.step] == [*names]
    tensors = {v.name: list(v.dims) for v in pipeline.input}
    for step in pipeline.ensemble_scheduling.step:
        model = models[step.model_name]
        lead = [-1] if model.max_batch_size else []
        for value in model.input:
            given = tensors[step.input_map[value.name]]
            assert fits(given, lead + list(value.dims)), (step.model_name, value.name)
        assert set(step.output_map) <= {v.name for v in model.output}
        for value in model.output:
            if value.name in step.output_map:
                tensors[step.output_map[value.name]] = lead + list(value.dims)
    for value in pipeline.output:
        assert fits(list(value.dims), tensors[value.name])


def test_frames_are_one_item_of_a_video_and_many_of_a_trunk(parts):
    (pixels,) = read(parts / "preprocess").output
    assert list(pixels.dims) == [1, *pixels.reshape.shape] == [1, -1, 16, 16, 3]
    (pixels,) = read(parts / "preprocess_frames").output
    assert list(pixels.dims) == [-1, 16, 16, 3] and not pixels.HasField("reshape")
    trunk, branch = read(parts / "trunk"), read(parts / "branch")
    assert trunk.max_batch_size == 64 and branch.max_batch_size == 32
    assert trunk.HasField("dynamic_batching") and branch.HasField("dynamic_batching")
    assert sizes(trunk.input) == {"frames": [16, 16, 3]}
    assert sizes(trunk.output) == {"rows_0": [5, 32], "rows_1": [5, 32]}
    assert sizes(branch.input) == {"rows_0": [-1, 5, 32], "rows_1": [-1, 5, 32]}
    assert sizes(read(parts / "frame_pipeline").output)["rows_1"] == [-1, 5, 32]


class Server:
    """What a repository answers: its ensembles by their configs, its graphs by ONNX Runtime.

    It has the methods of tritonclient's InferenceServerClient that a client needs.
    """

    def __init__(self, repository):
        self.repository, self.sessions = repository, {}

    def get_model_config(self, name, as_json=False):
        from google.protobuf.json_format import MessageToDict

        assert as_json
        config = read(self.repository / name)
        return {"config": MessageToDict(config, preserving_proto_field_name=True)}

    def infer(self, name, inputs):
        feeds = {value.name(): array_of(value) for value in inputs}
        return Answer(self.run(name, feeds))

    def run(self, name, feeds):
        config = read(self.repository / name)
        for value in config.input:
            lead = [-1] if config.max_batch_size else []
            assert fits(list(feeds[value.name].shape), lead + list(value.dims)), value.name
        if config.platform == "ensemble":
            tensors = dict(feeds)
            for step in config.ensemble_scheduling.step:
                found = self.run(
                    step.model_name, {a: tensors[b] for a, b in step.input_map.items()}
                )
                tensors |= {b: found[a] for a, b in step.output_map.items()}
            return {value.name: tensors[value.name] for value in config.output}
        if name not in self.sessions:
            path = self.repository / name / "1" / "model.onnx"
            self.sessions[name] = inference_session(path)
        names = [value.name for value in config.output]
        return dict(zip(names, self.sessions[name].run(names, feeds), strict=True))


class Answer:
    def __init__(self, arrays):
        self.as_numpy = arrays.__getitem__


def array_of(value):
    """The array that a client put into an InferInput."""
    content = np.frombuffer(value._get_content(), triton_to_np_dtype(value.datatype()))
    return content.reshape(value.shape())


def test_a_client_keeps_the_rows_of_a_window(parts):
    """Frames of two cameras, of two sizes; the embeddings are those of whole windows."""
    from examples.python.server_windows import Windows

    server, dice = Server(parts), np.random.default_rng(0)
    cameras = [dice.integers(0, 256, (11, *size, 3), np.uint8) for size in ((30, 40), (24, 24))]
    for frames, (window, stride) in zip(cameras, [(4, 3), (6, 1)], strict=True):
        client = Windows(server, window, stride)
        found = [client.push(frame) for frame in frames]
        ends = [i for i, value in enumerate(found) if value is not None]
        assert ends == [*range(window - 1, len(frames), stride)]
        for end in ends:
            (pixels,) = server.run("preprocess_frames", {"frames": frames}).values()
            clip = pixels[None, end - window + 1 : end + 1]
            wanted = server.run("video", {"video": clip})["video_embeds"][0]
            assert relative_error(found[end], wanted) < 2e-6
        assert len(client.rows) == window


def test_an_ensemble_of_frames_takes_any_number(parts):
    server, frames = Server(parts), np.random.default_rng(1).integers(0, 256, (3, 20, 30, 3), "u1")
    whole = server.run("frame_pipeline", {"frames": frames})
    for name, rows in whole.items():
        one = [server.run("frame_pipeline", {"frames": f[None]})[name] for f in frames]
        assert rows.shape == (3, 5, 32) and relative_error(np.concatenate(one), rows) < 2e-6


def fits(a, b):
    return len(a) == len(b) and all(x == y or -1 in (x, y) for x, y in zip(a, b, strict=True))


def test_what_the_ensemble_says_is_what_the_graphs_do(exported, tmp_path):
    write_repository(read_artefact(exported), tmp_path / "r")
    frames = np.random.default_rng(0).integers(0, 256, (6, 30, 40, 3), np.uint8)
    (pixels,) = inference_session(tmp_path / "r/preprocess/1/model.onnx").run(
        None, {"frames": frames}
    )
    outputs = inference_session(tmp_path / "r/video/1/model.onnx").run(
        None, {"video": pixels[None]}
    )
    config = read(tmp_path / "r/video_pipeline")
    assert [list(o.shape) for o in outputs] == [[1, 24], [1, 6, 24]]
    assert sizes(config.output) == {"video_embeds": [1, 24], "frame_embeds": [1, -1, 24]}


def test_fixed_sizes_classes_and_mug(tmp_path):
    labelled = {"vocab_size": 49408, "context_positions": 77, "context_length": 32}
    model = init_random(Stan(tiny_config(head="mug", **labelled)), seed=1).eval()
    folder = make_exported(model, batch=1, frames=5, head="classify", labels=["a", "b"])
    names = write_repository(read_artefact(folder), tmp_path / "r")
    assert names == ["preprocess", "score", "text", "video", "video_pipeline"]
    configs = {name: read(tmp_path / "r" / name) for name in names}
    assert configs["video"].max_batch_size == 0  # its one clip is in its shape
    assert sizes(configs["video"].input) == {"video": [1, 5, 16, 16, 3]}
    assert sizes(configs["video_pipeline"].output)["probabilities"] == [1, 2]
    assert not configs["score"].HasField("dynamic_batching")
    assert (tmp_path / "r" / "labels.txt").is_file()
    assert (tmp_path / "r" / "tokenizer.json").is_file()  # with the licence of its vocabulary
    assert (tmp_path / "r" / CLIP_LICENCE.name).read_text() == CLIP_LICENCE.read_text()


def test_a_float_graph_has_no_ensemble(tiny_model, tmp_path):
    artefact = read_artefact(make_exported(tiny_model, input="float", tower="video"))
    assert "video_pipeline" not in write_repository(artefact, tmp_path / "r")


def test_plans_of_the_parts_are_served(machine, tiny_model, tmp_path):
    if machine.engine == "trt-rtx":
        return
    folder = shutil.copytree(make_exported(tiny_model, split=True), tmp_path / "split")
    build_plans(folder, machine.engine)
    write_repository(read_artefact(folder), tmp_path / "r", backend="tensorrt")
    trunk, branch = read(tmp_path / "r" / "trunk"), read(tmp_path / "r" / "branch")
    assert trunk.platform == branch.platform == "tensorrt_plan"
    assert trunk.max_batch_size == 64 and branch.max_batch_size == 8
    assert sizes(branch.input) == {"rows_0": [-1, 5, 32], "rows_1": [-1, 5, 32]}
    assert (tmp_path / "r/branch/1/model.plan").is_file()


def test_plans_are_served_from_their_widest_profile(machine, tmp_path):
    plans = build_plans(machine.folder, machine.engine)
    artefact = read_artefact(machine.folder)
    if machine.engine == "trt-rtx":
        with pytest.raises(InputError, match="holds no plan of TensorRT for video.*not take those"):
            write_repository(artefact, tmp_path / "r", backend="tensorrt")
        assert not (tmp_path / "r").exists()
        return
    write_repository(artefact, tmp_path / "r", backend="tensorrt")
    video = read(tmp_path / "r" / "video")
    assert video.platform == "tensorrt_plan" and video.max_batch_size == 8
    assert list(video.instance_group[0].profile) == ["1"]
    assert video.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert (tmp_path / "r/video/1/model.plan").read_bytes() == plans[0].path.read_bytes()
    assert read(tmp_path / "r" / "preprocess").backend == "onnxruntime"
    plans[0].path.write_bytes(b"x" * plans[0].sidecar["plan_bytes"])
    with pytest.raises(InputError, match="a plan is code"):
        write_repository(artefact, tmp_path / "s", backend="tensorrt")


def test_the_batch_is_that_of_the_profile_served(machine, tmp_path):
    options = PlanOptions(batch=[(1, 8, 32), (1, 1, 4)], frames=[(6, 6, 6), (1, 6, 64)])
    build_plans(machine.folder, machine.engine, options)
    if machine.engine == "trt-rtx":
        return
    write_repository(read_artefact(machine.folder), tmp_path / "r", backend="tensorrt")
    assert read(tmp_path / "r" / "video").max_batch_size == 4
    manifest = machine.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema"', '"other": 1,\n "schema"', 1))
    with pytest.raises(InputError, match="was built from another manifest.json"):
        write_repository(read_artefact(machine.folder), tmp_path / "s", backend="tensorrt")


def test_two_plans_are_one_too_many(machine, tmp_path):
    (plan,) = build_plans(machine.folder, machine.engine, PlanOptions(roles=("video",)))
    for suffix in ("", ".json"):
        source = plan.path.with_name(plan.path.name + suffix)
        other = source.with_name(source.name.replace("fp32", "fp32.b"))
        other.write_bytes(source.read_bytes())
    with pytest.raises(InputError, match="holds (2 plans|no plan) of TensorRT for video"):
        write_repository(read_artefact(machine.folder), tmp_path / "r", backend="tensorrt")


def test_only_an_earlier_repository_is_replaced(exported, tmp_path):
    artefact, out = read_artefact(exported), tmp_path / "r"
    write_repository(artefact, out)
    write_repository(artefact, out)
    (out / "video" / "2").mkdir()
    mine = out / "video" / "2" / "model.onnx"
    mine.touch()
    with pytest.raises(InputError, match="video/2/model.onnx is not part of the earlier export"):
        write_repository(artefact, out)
    mine.unlink()
    config = out / "video" / "config.pbtxt"
    config.write_text(config.read_text() + "# mine")
    with pytest.raises(InputError, match="config.pbtxt was changed since the earlier export"):
        write_repository(artefact, out)
    (out / "stan_infer.json").write_text('{"files": 5}')
    with pytest.raises(InputError, match="it has no stan_infer.json of an earlier export"):
        write_repository(artefact, out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    with pytest.raises(InputError, match="it has no stan_infer.json of an earlier export"):
        write_repository(artefact, other)
    with pytest.raises(InputError, match="backend 'onnx' is unknown; did you mean 'onnxruntime'"):
        write_repository(artefact, tmp_path / "s", backend="onnx")


def test_text_format():
    message = {"a": 'x"y\n', "b": [1, -1], "c": {"d": EnumValue("KIND_GPU")}, "e": True}
    expected = 'a: "x\\"y\\n"\nb: 1\nb: -1\nc {\n  d: KIND_GPU\n}\ne: true\n'
    assert text_format(message) == expected


@pytest.mark.parametrize("source", ["folder", "checkpoint"])
def test_the_command(exported, tiny_model, tmp_path, source):
    from stan_infer.checkpoints.load import save_model

    given = exported
    if source == "checkpoint":
        given = tmp_path / "tiny.safetensors"
        save_model(tiny_model, given)
    options = ("-o", tmp_path / "r", "--format", "triton-server", "--json")
    done = python("-m", "stan_infer", "export", given, *options)
    assert json.loads(done.stdout)["models"] == ["preprocess", "text", "video", "video_pipeline"]
    assert read(tmp_path / "r" / "video").name == "video"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        {"r", *([given.name] if source == "checkpoint" else [])}
    )


def test_weights_keep_their_place_beside_the_graph(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MAX_INLINE", 10_000)
    folder = tmp_path / "f"
    artefact = export_model(tiny_model, folder, tower="video")
    write_repository(artefact, tmp_path / "r")
    served = tmp_path / "r/video/1"
    assert (served / "model.onnx").read_bytes() == (folder / "video.onnx").read_bytes()
    weights = (served / "video.onnx.data").read_bytes()
    assert weights == (folder / "video.onnx.data").read_bytes()


def test_a_file_that_changed_since_it_was_read(exported, tmp_path):
    artefact = read_artefact(shutil.copytree(exported, tmp_path / "f"))
    text = tmp_path / "f" / "text.onnx"
    text.write_bytes(text.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckError, match="the hash of text.onnx is not the one in manifest.json"):
        write_repository(artefact, tmp_path / "repository")
    assert sorted(os.listdir(tmp_path)) == ["f"]
