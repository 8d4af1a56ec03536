"""ONNX Runtime's providers: what was asked for runs or an error says why; binding, on the CPU."""

import sys
import types

import numpy as np
import onnxruntime as ort
import pytest

import stan_infer as si
from stan_infer.engines import ort_providers, ort_session
from stan_infer.engines.ort_providers import Provider, check_wheels, choose_provider
from stan_infer.engines.ort_session import MAX_GRAPHS, OrtGraph, inference_session
from stan_infer.engines.trials import IDENTITY
from stan_infer.errors import InputError, MissingError
from tests.conftest import clips


class Bound(Provider):
    """Binding works on a CPU too: the same calls, another place."""

    is_bound = True


@pytest.mark.parametrize("word", ["cuda", "cuda-graph"])
def test_bound_inputs_and_outputs_give_the_same(folder, word):
    plain = si.open_session(folder)
    graph = OrtGraph(inference_session(folder / "video.onnx"), Bound(word, "cpu"))
    for b, t in ((1, 6), (2, 3), (1, 6), (3, 64)):
        video = clips(b, t, 16, seed=b * t)
        got = graph.run({"video": video})["video_embeds"]
        assert np.array_equal(got, plain.embed_video(video))
    with pytest.raises(MissingError, match="ONNX Runtime failed on cpu:0: "):
        graph.run({"video": np.zeros((1, 65, 16, 16, 3), np.uint8)})


def test_a_captured_graph_keeps_its_places_and_there_is_a_bounded_number(folder):
    graph = OrtGraph(inference_session(folder / "video.onnx"), Bound("cuda-graph", "cpu"))
    plain = OrtGraph.open(folder / "video.onnx")
    for t in (*range(1, MAX_GRAPHS + 3), 1, MAX_GRAPHS + 2):
        feeds = {"video": clips(1, t, 16)}
        got, wanted = (g.run(feeds)["video_embeds"] for g in (graph, plain))
        assert (got == wanted).all()
        assert graph.describe()["cuda_graphs"] == min(t, MAX_GRAPHS) or t == 1
    assert graph.describe()["cuda_graphs"] == MAX_GRAPHS  # a graph lives as long as its session


def test_the_provider_is_told_and_compared(folder):
    assert si.open_session(folder, provider="cpu").describe()["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("device", "word", "error", "words"),
    [
        ("cpu", "cuda", InputError, "provider cuda runs on device cuda, not cpu: give --device"),
        ("cuda", "cpu", InputError, "provider cpu runs on device cpu, not cuda"),
        ("cpu", "tensort", InputError, "provider 'tensort' is unknown; did you mean 'tensorrt'"),
        ("cuda", "cuda", MissingError, "cannot use CUDAExecutionProvider.*pip install"),
        ("cuda:1", "cuda-graph", MissingError, "CUDAExecutionProvider on device 'cuda:1'"),
        ("cuda", "tensorrt", MissingError, "cannot use TensorrtExecutionProvider"),
        ("cuda", "tensorrt-rtx", MissingError, "plug-in is not installed.*pip install onnxrunt"),
    ],
)
def test_what_cannot_be_had_is_an_error(folder, device, word, error, words):
    available = ort.get_available_providers()
    if error is MissingError and "CUDAExecutionProvider" in available:
        pytest.skip("this machine has onnxruntime-gpu")
    with pytest.raises(error, match=words):
        si.open_session(folder, device=device, provider=word)


def test_a_provider_is_not_for_a_plan():
    with pytest.raises(InputError, match="x.plan is a plan"):
        si.open_session("x.plan", provider="cpu")


class FakeRuntime:
    """ONNX Runtime on a machine with a GPU, as far as opening goes."""

    def __init__(self, opened="CUDAExecutionProvider", error=None) -> None:
        self.opened, self.error, self.given = opened, error, []
        self.SessionOptions = ort.SessionOptions

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, source, options, providers):  # noqa: N802
        self.given.append((providers, options))
        if self.error:
            raise self.error
        return types.SimpleNamespace(get_providers=lambda: [self.opened, "CPUExecutionProvider"])


@pytest.fixture
def runtime(monkeypatch):
    def put(**given):
        fake = FakeRuntime(**given)
        monkeypatch.setattr(ort_providers, "require", lambda *args: fake)
        monkeypatch.setattr(ort_session, "require", lambda *args: fake)
        fake.__version__ = ort.__version__
        return fake

    return put


def test_the_cpu_is_never_listed_beside_a_gpu(runtime):
    fake = runtime()
    inference_session(IDENTITY, device="cuda:1", provider="cuda-graph")
    ((providers, options),) = fake.given
    wanted = {"device_id": "1", "use_tf32": "0", "enable_cuda_graph": "1"}
    assert providers == [("CUDAExecutionProvider", wanted)]
    key = "session.disable_cpu_ep_fallback"
    assert options.get_session_config_entry(key) == "1"


def test_a_session_that_went_to_the_cpu_is_an_error(runtime):
    runtime(opened="CPUExecutionProvider")
    with pytest.raises(MissingError, match="it opened CPUExecutionProvider instead"):
        inference_session(IDENTITY, device="cuda")
    runtime(opened="CUDAExecutionProvider")
    with pytest.raises(MissingError, match="it opened CUDAExecutionProvider instead"):
        inference_session(IDENTITY, device="cuda", provider="tensorrt")


def test_nodes_that_would_go_to_the_cpu_are_an_error(runtime):
    runtime(error=RuntimeError("This session contains graph nodes ... fallback to the CPU EP"))
    with pytest.raises(MissingError, match="it leaves nodes of the graph to the CPU"):
        inference_session(IDENTITY, device="cuda")


def test_a_plug_in_that_does_not_load(monkeypatch):
    plugin = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    plugin.get_library_path = lambda: "/nowhere/library.so"
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    with pytest.raises(MissingError, match="NvTensorRTRTXExecutionProvider .*library.so"):
        inference_session(IDENTITY, device="cuda", provider="tensorrt-rtx")


def test_both_wheels_are_an_error_with_the_repair(monkeypatch):
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(ort_providers, "installed_versions", lambda names: both)
    check_wheels.cache_clear()
    with pytest.raises(MissingError, match="pip uninstall -y onnxruntime onnxruntime-gpu && pip"):
        check_wheels()
    with pytest.raises(MissingError, match="own the same folder"):
        inference_session(IDENTITY)


def test_the_choice():
    assert choose_provider("cpu") == Provider("cpu", "cpu")
    assert choose_provider("cuda:2") == Provider("cuda", "cuda", 2)
    assert choose_provider("cuda", "tensorrt").name == "TensorrtExecutionProvider"
