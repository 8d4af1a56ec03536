"""Engine "triton" without a GPU: what it says, and its logic on a stand-in for torch.cuda."""

import threading

import numpy as np
import pytest
import torch

import stan_infer as si
from stan_infer.engines import torch_session, triton_session
from stan_infer.engines.cuda_graphs import WARM_UP, CudaGraphs
from stan_infer.engines.triton_session import TritonSession, unavailable
from stan_infer.errors import InputError, MissingError
from stan_infer.network.model import Stan, init_random
from tests.conftest import clips, relative_error, tiny_config
from tests.engines.fake_cuda import FakeCuda
from tests.engines.test_sessions import ids

HALF = 1e-2  # fp16, relative to the largest value


@pytest.fixture
def gpu(monkeypatch):
    """A machine where the kernels are said to run; device "cuda" is the CPU."""
    monkeypatch.setattr(triton_session, "unavailable", lambda device: None)
    monkeypatch.setattr(triton_session, "torch_device", lambda device: torch.device("cpu"))
    return FakeCuda()


def pixels(b):
    return torch.ones(b, 2, 4, 4, 3, dtype=torch.uint8)


def graphs(cuda, limit=2):
    """CudaGraphs of a sum over pixels; a replay does nothing, so results are the capture's."""
    runs = []

    def run(clips):
        runs.append(tuple(clips.shape))
        return [clips.double().sum((1, 2, 3, 4)), clips.double().mean((2, 3, 4))]

    return CudaGraphs(run, torch.device("cpu"), limit, cuda), runs


def test_a_shape_is_captured_once():
    cuda = FakeCuda()
    pool, runs = graphs(cuda)
    pool(pixels(1))
    assert len(runs) == WARM_UP + 1  # warm up aside, then the capture
    pool(pixels(1))
    assert len(runs) == WARM_UP + 1
    assert cuda.log.count("capture") == 1 and cuda.log.count("replay") == 2
    assert cuda.log.index("replay") > cuda.log.index("captured")


def test_the_least_recently_used_shape_goes_and_all_share_a_pool():
    cuda = FakeCuda()
    pool, _ = graphs(cuda, limit=2)
    for b in (1, 2, 1, 3):
        pool(pixels(b))
    assert pool.describe() == {"cuda_graphs": [[1, 2], [3, 2]], "cuda_graphs_mib": 2.0}
    assert len({id(p) for p in cuda.pools}) == 1
    pool(pixels(2))
    assert cuda.log.count("capture") == 4  # it had gone
    pool.clear()
    assert pool.describe()["cuda_graphs"] == []


def test_results_belong_to_the_caller():
    pool, _ = graphs(FakeCuda())
    a, _ = pool(pixels(1))
    b, _ = pool(pixels(1))
    assert a.data_ptr() != b.data_ptr()


def open_fake(model, cuda, **options):
    """Without replays, whose fake does nothing: the network runs at each call."""
    return TritonSession(model, cuda=cuda, cuda_graphs=False, **options)


def test_numbers(gpu):
    model = init_random(Stan(tiny_config(head="mug")), seed=1).eval().requires_grad_(False)
    session, eager = open_fake(model, gpu), si.open_session(model, "eager")
    video = clips(2, 3, 16)
    got = session.embed_video(video)
    assert got.dtype == np.float32
    assert np.array_equal(session.embed_video(video, as_tensor=True).numpy(), got)
    assert relative_error(got, eager.embed_video(video)) < HALF
    assert relative_error(session.embed_text(ids()), eager.embed_text(ids())) < HALF
    assert np.abs(session.score(ids(), video) - eager.score(ids(), video)).max() < 2 * HALF


def test_branch_layers_run_beside_the_trunk(gpu, tiny_model):
    session = open_fake(tiny_model, gpu)
    gpu.log.clear()
    session.embed_video(clips(1, 2, 16))
    branch = session._branch.name
    steps = [line for line in gpu.log if branch in line]
    # Each branch layer waits for the trunk, and only the head waits for the branch.
    wait, enter, leave = f"{branch} waits for main", f"enter {branch}", f"leave {branch}"
    assert steps == [wait, enter, leave] * 2 + [f"main waits for {branch}"]
    gpu.log.clear()
    open_fake(tiny_model, gpu, two_streams=False).embed_video(clips(1, 2, 16))
    assert not any("waits for main" in line for line in gpu.log)


def test_pixels_go_up_on_a_stream_of_their_own(gpu, tiny_model, monkeypatch):
    session = open_fake(tiny_model, gpu)
    session._device = session._tensors_on = torch.device(
        "meta"
    )  # anything that is not where the pixels are
    monkeypatch.setattr(session, "_network", lambda clips: [clips, clips])
    gpu.log.clear()
    session.embed_video(clips(1, 2, 16), as_tensor=True)
    up = session._upload.name
    assert gpu.log == [f"enter {up}", f"leave {up}", f"main waits for {up}"]


def test_other_threads_may_use_cuda_while_a_graph_is_captured():
    cuda = FakeCuda()
    pool, _ = graphs(cuda)
    pool(pixels(1))
    assert cuda.modes == ["thread_local"]


def test_texts_are_captured_in_sizes_of_a_power_of_two(gpu, tiny_model):
    """The stand-in replays nothing: the results of five texts are those of its capture."""
    session = TritonSession(tiny_model, cuda=gpu)
    assert session.embed_text(ids()).shape[0] == len(ids())
    before = gpu.log.count("capture")
    rows = np.concatenate([ids()] * 3)[:5]
    assert session.embed_text(rows).shape[0] == 5
    assert session.embed_text(np.concatenate([rows, rows])[:7]).shape[0] == 7
    assert gpu.log.count("capture") == before + 1
    assert session.describe()["cuda_graphs_of_texts"][-1][0] == 8


def test_a_second_thread_is_refused(gpu, tiny_model, monkeypatch):
    session, network = open_fake(tiny_model, gpu), TritonSession._network
    inside, go_on = threading.Event(), threading.Event()

    def slow(clips):
        inside.set()
        assert go_on.wait(60)
        return network(session, clips)

    monkeypatch.setattr(session, "_network", slow)
    found = []
    video = clips(1, 2, 16)
    first = threading.Thread(target=lambda: found.append(session.embed_video(video)))
    first.start()
    assert inside.wait(60)
    for call in (lambda: session.embed_video(video), lambda: session.embed_text(ids())):
        with pytest.raises(InputError, match="at work in another thread"):
            call()
    go_on.set()
    first.join()
    assert len(found) == 1
    session = open_fake(tiny_model, gpu)
    assert np.array_equal(session.embed_video(video), found[0])


def test_a_counter_that_a_run_left_behind_harms_no_other(gpu, tiny_model):
    session, video = open_fake(tiny_model, gpu), clips(2, 3, 16)
    wanted = session.embed_video(video)
    session._counters += 1
    assert np.array_equal(session.embed_video(video), wanted)


def test_new_weights_drop_the_graphs(gpu, tiny_model):
    session = TritonSession(tiny_model, cuda=gpu)
    session.warm_up([(1, 2), (2, 3)])
    assert session.describe()["cuda_graphs"] == [[1, 2], [2, 3]]
    other = init_random(Stan(tiny_config()), seed=9).eval().requires_grad_(False)
    session.load(other)
    assert session.describe()["cuda_graphs"] == []
    session._use_graphs = False
    wanted = other.encode_video(torch.from_numpy(clips(1, 2, 16))).mean(1)
    assert relative_error(session.embed_video(clips(1, 2, 16)), wanted) < HALF


def test_more_clips_than_the_counters_are_for(gpu, tiny_model, monkeypatch):
    session = open_fake(tiny_model, gpu)
    seen = []
    monkeypatch.setattr(
        session, "_network", lambda c: seen.append(len(c)) or [torch.zeros(len(c), 24)] * 2
    )
    assert session.embed_video(clips(70, 1, 16)).shape == (70, 24)
    assert seen == [64, 6]


@pytest.fixture
def replaying(monkeypatch):
    """A replay computes: from what the static inputs hold, into the outputs of the capture."""
    capture = CudaGraphs._capture

    def capturing(self, shape):
        graph, static, outputs = capture(self, shape)

        def again():
            for held, made in zip(outputs, self._run(*static), strict=True):
                held.copy_(made)

        graph.work.append(again)
        return graph, static, outputs

    monkeypatch.setattr(CudaGraphs, "_capture", capturing)


ROUNDING = {"fp16": HALF, "bf16": 1e-1}


@pytest.mark.parametrize(
    ("precision", "changes", "cuda_graphs"),
    [
        ("fp16", {}, True),
        ("bf16", {"branch": "conv"}, True),
        ("fp16", {"head": "mug"}, True),
        ("fp16", {"head": "mug"}, False),
    ],
)
def test_windows_that_slide(gpu, replaying, precision, changes, cuda_graphs):
    model = init_random(Stan(tiny_config(**changes)), seed=1).eval().requires_grad_(False)
    session = TritonSession(model, cuda=gpu, precision=precision, cuda_graphs=cuda_graphs)
    dice = np.random.default_rng(len(changes) + cuda_graphs)
    window, stride = (int(n) for n in dice.integers(2, 5, 2))
    frames = clips(1, 11, 16)[0]
    stream, other = session.stream(window, stride), session.stream(window)
    found, at = [], 0
    while at < len(frames):
        n = int(dice.integers(2, 5))
        found += stream.extend(frames[at : at + n])
        other.push(frames[-1 - at])  # of a second camera, on the same graphs
        at += n
    starts = [*range(0, len(frames) - window + 1, stride)]
    assert [w.first for w in found] == starts
    wanted = session.embed_video(np.stack([frames[i : i + window] for i in starts]))
    got = np.stack([w.embedding for w in found])
    assert got.dtype == np.float32
    assert relative_error(got, wanted) < ROUNDING[precision]
    size = 2 * window * model.config.branch_layers * 5 * 32
    assert stream.bytes_held == 2 * size + 8 * 3 * 16 * 16  # of 16 bits; pixels


def test_a_stream_waits_for_no_capture(gpu, replaying, tiny_model):
    session = TritonSession(tiny_model, cuda=gpu)
    assert "cuda_graphs_of_streams" not in session.describe()
    stream = session.stream(11, 2)
    found = session.describe()["cuda_graphs_of_streams"]
    assert found == {"trunk": [2, 3, 8], "branch": [[1, 11]]}
    before = gpu.log.count("capture")
    windows = [w for frame in clips(1, 16, 16)[0] for w in stream.push(frame)]
    assert len(windows) == 3
    assert gpu.log.count("capture") == before and set(gpu.modes) == {"thread_local"}
    session.stream(11, 2)
    assert gpu.log.count("capture") == before  # streams share them


def test_new_weights_end_a_stream(gpu, replaying, tiny_model):
    session, frames = TritonSession(tiny_model, cuda=gpu), clips(1, 3, 16)[0]
    stream = session.stream(2)
    stream.extend(frames[:2])
    other = init_random(Stan(tiny_config()), seed=9).eval().requires_grad_(False)
    session.load(other)
    with pytest.raises(InputError, match="weights were replaced.*start another"):
        stream.push(frames[2])
    (window,) = session.stream(2).extend(frames[:2])
    assert relative_error(window.embedding, session.embed_video(frames[None, :2])[0]) < HALF
    stream = session.stream(2)
    session.close()
    with pytest.raises(InputError, match="closed"):
        stream.push(frames[0])


def test_fp8_needs_scales(gpu, tiny_model):
    with pytest.raises(InputError, match="go together"):
        open_fake(tiny_model, gpu, precision="fp8")


def test_bad_words(gpu, tiny_model):
    with pytest.raises(InputError, match="no precision 'fp32'.*--engine eager"):
        open_fake(tiny_model, gpu, precision="fp32")
    session = open_fake(tiny_model, gpu)
    with pytest.raises(InputError, match="takes uint8"):
        session.embed_video(np.zeros((1, 2, 3, 16, 16), np.float32))
    with pytest.raises(InputError, match="65 frames"):
        session.embed_video(np.zeros((1, 65, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="is a choice of engine triton"):
        si.open_session(tiny_model, "eager", scales={})
    with pytest.raises(InputError, match="choice of engines eager and compile"):
        si.open_session(tiny_model, "triton", graph="fused")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 48, "heads": 2}, "heads of 16, 32, 64 or 128"),
        ({"width": 320, "heads": 20}, "16"),
    ],
    ids=str,
)
def test_a_model_that_the_kernels_cannot_take(gpu, changes, words):
    with pytest.raises(InputError, match=f"{words}.*use --engine eager"):
        open_fake(Stan(tiny_config(**changes)).eval(), gpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_gpu_it_is_an_error_that_names_other_engines(tiny_model, device):
    with pytest.raises(MissingError, match="finds no GPU; use --engine eager or ort"):
        si.open_session(tiny_model, "triton", device=device)


def test_why_the_kernels_cannot_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "'cuda:2' is not here: 2 GPUs found" in unavailable("cuda:2")
    assert "give --device cuda" in unavailable("cpu")
    assert "Tesla T4 is sm_75; the kernels need sm_80" in unavailable("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert unavailable("cuda:1") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_on_a_gpu(tiny_model, precision):
    session = si.open_session(tiny_model, "triton", device="cuda", precision=precision)
    session.warm_up([(1, 1), (2, 3)])
    for b, t in ((2, 3), (1, 1), (3, 12), (1, 64), (2, 3)):
        video = clips(b, t, 16)
        wanted = tiny_model.encode_video(torch.from_numpy(video)).mean(1)
        limit = HALF if precision == "fp16" else 1e-1
        assert relative_error(session.embed_video(video), wanted) < limit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_every_replay_is_the_same(tiny_model):
    """Two streams, graphs and uploads of other clips in between: a race would show here."""
    fast = si.open_session(tiny_model, "triton", device="cuda")
    plain = TritonSession(tiny_model, cuda_graphs=False, two_streams=False)
    pool = [clips(2, 5, 16, seed=i) for i in range(5)]
    wanted = [plain.embed_video(video, as_tensor=True) for video in pool]
    results = [fast.embed_video(pool[i % 5], as_tensor=True) for i in range(100)]
    assert all(torch.equal(got, wanted[i % 5]) for i, got in enumerate(results))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_on_a_gpu_windows_slide(tiny_model, precision):
    session = si.open_session(tiny_model, "triton", device="cuda", precision=precision)
    frames = clips(1, 40, 16)[0]
    for window, stride in ((1, 1), (3, 2), (12, 1)):
        stream, found = session.stream(window, stride), []
        for i in range(0, 40, 7):
            found += stream.extend(frames[i : i + 7])
        wanted = session.embed_video(np.stack([frames[w.first : w.first + window] for w in found]))
        got = np.stack([w.embedding for w in found])
        assert len(found) == (40 - window) // stride + 1
        assert relative_error(got, wanted) < ROUNDING[precision]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("graph", ["fused", "reference"])
def test_folding_a_model_that_lies_on_a_gpu(tiny_model, graph):
    session = si.open_session(tiny_model, "eager", device="cuda", graph=graph)
    assert np.isfinite(session.embed_video(clips(1, 2, 16))).all()


def test_the_rewritten_graph_in_eager_mode(tiny_model):
    session = si.open_session(tiny_model, "eager", graph="fused")
    video = clips(2, 3, 16)
    wanted = si.open_session(tiny_model, "eager").embed_video(video)
    assert relative_error(session.embed_video(video), wanted) < 1e-5
    assert session.describe()["graph"] == "fused"
    with pytest.raises(InputError, match="the fused graph takes uint8"):
        session.embed_video(np.zeros((1, 2, 3, 16, 16), np.float32))
    with pytest.raises(InputError, match="graph 'fusd' is unknown; did you mean 'fused'"):
        torch_session.TorchSession(tiny_model, graph="fusd")
