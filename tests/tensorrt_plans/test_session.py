"""Engines "trt" and "trt-rtx" on a stand-in that computes: numbers, shapes, graphs, refusals."""

import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import stan_infer as si
from stan_infer.artefacts.folder import read_artefact
from stan_infer.engines.trt_graph import MAX_SHAPES, PlanGraph
from stan_infer.engines.trt_session import TrtRtxSession, TrtSession
from stan_infer.errors import InputError, MissingError
from stan_infer.system.cache_folder import cache_folder
from stan_infer.tensorrt_plans.api import used_names
from stan_infer.tensorrt_plans.build import build_plans
from stan_infer.tensorrt_plans.options import PlanOptions
from stan_infer.tensorrt_plans.plan_file import read_plan, sidecar_path
from tests.conftest import clips, flip
from tests.engines.test_session_inputs import check_closed
from tests.tensorrt_plans.conftest import edit


def built(machine, **options):
    plans = build_plans(machine.folder, machine.engine, PlanOptions(**options))
    return plans[0]


def opened(machine, **options):
    kind = TrtRtxSession if machine.engine == "trt-rtx" else TrtSession
    return kind(read_artefact(machine.folder), cuda=machine.cuda, **options)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_it_gives_what_onnx_runtime_gives(machine, cuda_graphs):
    built(machine)
    session, oracle = opened(machine, cuda_graphs=cuda_graphs), si.open_session(machine.folder)
    for b, t in ((1, 6), (2, 3), (1, 1), (8, 12), (1, 64), (1, 6), (2, 3)):
        video = clips(b, t, 16, seed=b + t)
        got = session.embed_video(video)
        assert np.array_equal(got, oracle.embed_video(video))
    ids = np.random.default_rng(0).integers(1, 127, (5, 12))
    for call in ("embed_video", "embed_text"):
        given = video if call == "embed_video" else ids
        tensor = getattr(session, call)(given, as_tensor=True)
        assert isinstance(tensor, torch.Tensor)
        assert np.array_equal(tensor.numpy(), getattr(session, call)(given))
    assert np.array_equal(session.embed_text(ids), oracle.embed_text(ids))
    assert np.allclose(session.score(ids, video), oracle.score(ids, video))
    for form in (list, torch.from_numpy, lambda v: v[:, ::-1].copy()[:, ::-1]):
        assert np.array_equal(session.embed_video(form(video)), oracle.embed_video(video))
    with pytest.raises(InputError, match="video holds no clips: B is 0"):
        session.embed_video([])
    with pytest.raises(InputError, match="video is float32; this exported folder takes uint8"):
        session.embed_video(np.zeros((1, 2, 3, 16, 16)))
    check_closed(session)


def test_results_are_the_callers_own(machine):
    built(machine)
    session = opened(machine)
    first = session.embed_video(clips(1, 6, 16, seed=1), as_tensor=True)
    kept = first.clone()
    session.embed_video(clips(1, 6, 16, seed=2))
    assert torch.equal(first, kept)


def test_one_context_per_shape_and_a_bounded_number(machine):
    built(machine)
    session = opened(machine)
    for t in range(1, MAX_SHAPES + 4):
        session.embed_video(clips(1, t, 16))
    assert machine.world.calls.count("context") == MAX_SHAPES + 3
    shown = session.describe()["cuda_graphs"]
    assert len(shown) == MAX_SHAPES and shown[-1] == [1, MAX_SHAPES + 3]
    session.embed_video(clips(1, 4, 16))
    assert machine.world.calls.count("context") == MAX_SHAPES + 3  # kept
    session.embed_video(clips(1, 1, 16))
    assert machine.world.calls.count("context") == MAX_SHAPES + 4  # made again


def test_the_profile_follows_the_shape(machine):
    built(machine, roles=("video",))
    session = opened(machine)
    session.embed_video(clips(1, 6, 16))
    session.embed_video(clips(1, 7, 16))
    profiles = [c for c in machine.world.calls if c.startswith("profile")]
    assert profiles[0] == "profile 0" and profiles[-1] == "profile 1"


def test_only_recorded_names_are_called_and_all_of_them(machine):
    """used_names lists exactly the names that are called."""
    options = {"timing_cache": machine.folder.parent / "t", "hardware_compatible": True}
    options["version_compatible"] = True
    if machine.engine == "trt-rtx":
        options = {"targets": ["sm_89"]}
    built(machine, workspace_mib=9, level=1, tf32=True, **options)
    built(machine)
    machine.world.fault = "refused"
    with pytest.raises(InputError):
        built(machine)
    machine.world.fault = ""
    session = opened(machine)
    session.embed_video(clips(1, 6, 16))
    session.embed_text(np.ones((1, 5), int))
    session.close()
    opened(machine)
    # Bases for subclasses, plain bytes, and members of data are not watched.
    unwatched = {"ILogger", "IProgressMonitor", "DataType", "TensorIOMode", "ComputeCapability"}
    wanted = {
        (kind, name)
        for kind, members in used_names(machine.engine).items()
        for name in members
        if kind not in unwatched
    }
    touched = {(k, n) for k, n in machine.world.touched if k not in unwatched}
    assert sorted(wanted - touched) == [], "a name that nobody calls"
    assert sorted(touched - wanted) == [], "a call whose name is not in the list"


@pytest.mark.parametrize("shape", [(9, 6), (1, 65), (33, 1)])
def test_shapes_outside_are_refused_with_the_ranges(machine, shape):
    built(machine)
    with pytest.raises(InputError, match="to 8x64x16x16x3|takes 1 to|1 to 64"):
        opened(machine).embed_video(np.zeros((*shape, 16, 16, 3), np.uint8))


def test_other_inputs_are_refused(machine):
    built(machine)
    session = opened(machine)
    with pytest.raises(InputError, match="video is float32; this exported folder takes uint8"):
        session.embed_video(np.zeros((1, 2, 3, 16, 16), np.float32))
    with pytest.raises(InputError, match=r"\[B,T,H,W,3\]"):
        session.embed_video(np.zeros((1, 2, 16, 17, 3), np.uint8))


def test_another_thread_is_refused(machine):
    built(machine)
    session, errors = opened(machine), []

    def use():
        try:
            session.embed_video(clips(1, 6, 16))
        except InputError as e:
            errors.append(str(e))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "belongs to the thread that opened it" in errors[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("deserialise", "does not take plan .*version tag; build it again"),
        ("context", "has no context for .1, 6.* memory is full takes fewer clips"),
        ("run", "could not run .*illegal memory access"),
    ],
)
def test_what_the_runtime_cannot_do_is_said(machine, fault, words):
    built(machine)
    machine.world.fault = fault
    with pytest.raises(MissingError, match=words):
        opened(machine).embed_video(clips(1, 6, 16))


def test_everything_is_done_on_the_sessions_gpu_and_stream(machine):
    plan = built(machine, roles=("video",))
    inside = []
    enter = machine.cuda.device
    deserialise = machine.module.Runtime.deserialize_cuda_engine

    @contextmanager
    def device(where):
        inside.append(where)
        with enter(where):
            yield
        inside.pop()

    def watched(self, data):
        assert inside, "the engine would belong to whatever GPU is current"
        return deserialise(self, data)

    machine.cuda.device = device
    type.__setattr__(machine.module.Runtime, "deserialize_cuda_engine", watched)
    graph = PlanGraph(plan, machine.module, torch.device("cpu"), cuda=machine.cuda)
    machine.cuda.log.clear()
    graph(torch.from_numpy(clips(1, 6, 16)))
    ours = graph._stream.name
    assert machine.cuda.log[:2] == [f"{ours} waits for main", f"enter {ours}"]
    assert machine.cuda.log[-2:] == [f"leave {ours}", f"main waits for {ours}"]
    machine.cuda.log.clear()
    graph.close()
    graph.close()
    assert machine.cuda.log[0] == "synchronize"  # before anything is freed, a run has ended


def test_contexts_share_one_memory_as_large_as_what_was_seen(machine):
    built(machine, roles=("video",))
    session = opened(machine)
    for t in (6, 2, 9, 3):
        session.embed_video(clips(1, t, 16))
    at, sizes = zip(*machine.world.memory, strict=True)
    assert at[0] == at[1] != at[2] == at[3]
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3]
    assert session.describe()["scratch_mib"] == round(sizes[3] / 2**20, 1)


def test_what_torch_raises_on_a_gpu_is_said(machine, monkeypatch):
    built(machine, roles=("video",))
    session = opened(machine)
    full = torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")
    illegal = RuntimeError("CUDA error: an illegal address\nmore")
    for error, words in (
        (full, "out of memory.*fewer clips"),
        (illegal, "illegal address; see: stan-infer doc"),
    ):

        def empty(*args, error=error, **kwargs):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", empty)
            with pytest.raises(MissingError, match=f"plan failed on cpu: .*{words}"):
                session.embed_video(clips(1, 5, 16))
        assert not session.opened("video")._ready, "a context that nothing would free"
    session.embed_video(clips(1, 5, 16))


def test_a_plan_of_towers_only(machine):
    build_plans(machine.folder, machine.engine, PlanOptions(roles=("preprocess",)))
    (path,) = (machine.folder / "engines").glob("*.plan")
    with pytest.raises(InputError, match="is a plan of the preprocess graph"):
        si.open_session(path)


def test_auto_rebuild_reaches_this_gpu(machine):
    is_rtx = machine.engine == "trt-rtx"
    plan = built(machine, roles=("video",), **({"targets": ["sm_80"]} if is_rtx else {}))
    edit(plan.path, built_on=None if is_rtx else {"sm": "sm_80"})
    with pytest.raises(InputError, match="built for sm_80; this GPU is Stand-in, sm_89"):
        opened(machine)
    opened(machine, auto_rebuild=True).embed_video(clips(1, 6, 16))
    found = read_plan(plan.path)
    assert (found.targets or found.built_on) in (("sm_80", "sm_89"), "sm_89")


def test_a_plan_of_another_version_or_gpu(machine):
    plan = built(machine)
    good = plan.sidecar
    edit(plan.path, trt_version=[9, 9, 9, 9])
    with pytest.raises(InputError, match="was built by .* 9.9.9.9; installed is .*--auto-rebuild"):
        opened(machine)
    rebuilt = opened(machine, auto_rebuild=True)
    assert rebuilt.embed_video(clips(1, 6, 16)).shape == (1, 24)
    assert read_plan(plan.path).version == plan.version
    edit(plan.path, targets=["sm_120"], built_on={"sm": "sm_120"}, trt_version=good["trt_version"])
    with pytest.raises(InputError, match="built for sm_120; this GPU is Stand-in, sm_89"):
        opened(machine)


def test_a_plan_that_fits_is_found_among_others(machine):
    plan = built(machine, roles=("video",))
    name = plan.path.name.replace("video.fp32", "video.fp32.0")
    other = plan.path.with_name(name)  # sorts before
    shutil.copy(plan.path, other)
    shutil.copy(sidecar_path(plan.path), sidecar_path(other))
    edit(read_plan(other).path, trt_version=[1, 1, 1, 1])
    assert opened(machine).describe()["plan"] == plan.path.name


def test_a_plan_of_another_export(machine):
    plan = built(machine)
    edit(plan.path, onnx_sha256="0" * 64)
    with pytest.raises(InputError, match="was built from another video.onnx"):
        opened(machine)
    edit(plan.path, onnx_sha256=plan.sidecar["onnx_sha256"], manifest_sha256="0" * 64)
    with pytest.raises(InputError, match="was built from another manifest.json"):
        opened(machine)


def test_a_changed_plan_is_never_deserialised(machine):
    plan = built(machine)
    flip(plan.path)
    with pytest.raises(InputError, match="a plan is code, so it is not loaded"):
        opened(machine)
    assert ("Runtime", "deserialize_cuda_engine") not in machine.world.touched


def test_open_session_by_folder_and_by_plan(machine, monkeypatch):
    with pytest.raises(
        InputError, match=f"holds no plan of engine {machine.engine}: stan-infer ex"
    ):
        si.open_session(machine.folder, machine.engine, device="cuda")
    plan = built(machine, roles=("video",))
    given = {}
    monkeypatch.setattr(
        TrtSession, "__init__", lambda self, artefact, **options: given.update(options)
    )
    session = si.open_session(machine.folder, machine.engine, device="cuda", auto_rebuild=True)
    assert type(session) is (TrtRtxSession if machine.engine == "trt-rtx" else TrtSession)
    assert "plan" not in given and given["auto_rebuild"] is True
    si.open_session(plan.path, device="cuda")
    assert given["plan"] == plan.path
    with pytest.raises(InputError, match=f"is a plan of engine {machine.engine}, not ort"):
        si.open_session(plan.path, "ort")
    with pytest.raises(InputError, match="a plan was built with its own"):
        si.open_session(plan.path, settings={"heads": 2})
    elsewhere = machine.folder.parent / "lone"
    shutil.copytree(plan.path.parent, elsewhere)
    with pytest.raises(InputError, match="does not lie in engines/ of an exported folder"):
        si.open_session(elsewhere / plan.path.name)


def test_a_folder_without_the_parts_says_what_helps(machine):
    built(machine)
    with pytest.raises(InputError, match="no trunk.onnx, .* --split --format tensorrt"):
        opened(machine).stream()


def test_one_tower_alone(machine):
    built(machine, roles=("video",))
    session = opened(machine)
    with pytest.raises(InputError, match="has no text plan of engine .* --plans text"):
        session.embed_text(np.ones((1, 5), int))


def test_the_device_is_named(machine):
    built(machine)
    with pytest.raises(InputError, match="runs on NVIDIA GPUs, not on cpu: leave --device out"):
        opened(machine, device="cpu")
    machine.cuda.is_available = lambda: False
    for device in ("cpu", "cuda"):
        with pytest.raises(MissingError, match="torch finds none here: use --engine ort or openv"):
            opened(machine, device=device)


def test_compiled_code_is_kept_in_the_users_own_cache(machine):
    built(machine, roles=("video",))
    session = opened(machine)
    session.embed_video(clips(1, 6, 16))
    session.close()
    is_rtx = machine.engine == "trt-rtx"  # TensorRT proper compiles nothing at run time
    assert len(list(cache_folder("trt-rtx").iterdir())) == is_rtx
    opened(machine)
    assert ("cache read" in machine.world.calls) == is_rtx


def test_a_cache_that_others_can_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("STAN_INFER_CACHE", str(tmp_path))
    cache_folder("x").chmod(0o777)
    with pytest.raises(InputError, match="other users can write into the cache .*chmod 700"):
        cache_folder("x")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STAN_INFER_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot use the cache"):
        cache_folder("x")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu(exported, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    shutil.copytree(exported, tmp_path / "tiny")
    build_plans(tmp_path / "tiny", "trt-rtx")
    oracle = si.open_session(exported)
    for cuda_graphs in (True, False):
        session = TrtRtxSession(read_artefact(tmp_path / "tiny"), cuda_graphs=cuda_graphs)
        for b, t in ((1, 6), (2, 3), (1, 64), (1, 6)):
            video = clips(b, t, 16, seed=t)
            got, wanted = session.embed_video(video), oracle.embed_video(video)
            assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
