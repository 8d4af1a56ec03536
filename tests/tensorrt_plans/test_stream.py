"""Windows that slide over plans of the trunk and the branch, on the stand-in for TensorRT."""

import shutil

import numpy as np
import pytest
import torch

import stan_infer as si
from stan_infer.artefacts.folder import read_artefact
from stan_infer.engines.trt_session import TrtRtxSession, TrtSession
from stan_infer.errors import InputError
from stan_infer.network.model import Stan, init_random
from stan_infer.tensorrt_plans.build import build_plans
from stan_infer.tensorrt_plans.options import PlanOptions
from tests.conftest import clips, flip, relative_error, tiny_config
from tests.exported import exported as make_exported
from tests.tensorrt_plans.conftest import edit

FORMS = [{"branch": "selfattn"}, {"branch": "conv"}, {"head": "mug"}]
FP32 = 2e-6  # relative to the largest value


@pytest.fixture(scope="module", params=FORMS, ids=[next(iter(f.values())) for f in FORMS])
def exported(request):
    model = init_random(Stan(tiny_config(**request.param)), seed=1).eval().requires_grad_(False)
    return make_exported(model, split=True)


def opened(machine, **options):
    kind = TrtRtxSession if machine.engine == "trt-rtx" else TrtSession
    return kind(read_artefact(machine.folder), cuda=machine.cuda, **options)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_equals_the_whole_network(machine, cuda_graphs):
    plans = build_plans(machine.folder, machine.engine)
    assert [p.role for p in plans] == ["video", "text", "trunk", "branch"]
    assert [p["frames"] for p in plans[2].profiles] == [
        ((1, 16, 16, 3),) * 3,
        ((1, 16, 16, 3), (8, 16, 16, 3), (64, 16, 16, 3)),
    ]
    assert [p["rows_1"] for p in plans[3].profiles] == [
        ((1, 6, 5, 32),) * 3,
        ((1, 1, 5, 32), (1, 6, 5, 32), (8, 64, 5, 32)),
    ]
    dice = np.random.default_rng(int(cuda_graphs))
    with opened(machine, cuda_graphs=cuda_graphs) as session:
        for window, stride in ((1, 1), (3, 2), (6, int(dice.integers(1, 7)))):
            frames = clips(1, window + 15, 16, seed=window)[0]
            stream, found, at = session.stream(window, stride), [], 0
            while at < len(frames):
                n = int(dice.integers(1, 11))  # or more than pass the trunk at once
                found += stream.extend(frames[at : at + n])
                at += n
            starts = [*range(0, len(frames) - window + 1, stride)]
            assert [w.first for w in found] == starts
            whole = [session.embed_video(frames[None, i : i + window])[0] for i in starts]
            got = np.stack([w.embedding for w in found])
            assert relative_error(got, np.stack(whole)) < FP32
        assert stream.bytes_held == 2 * 6 * 2 * 5 * 32 * 4 + stream.at_once * 3 * 16 * 16
    with pytest.raises(InputError, match="closed"):
        stream.push(frames[0])


def test_a_stream_waits_for_no_context(machine):
    build_plans(machine.folder, machine.engine)
    with opened(machine) as session:
        before = machine.world.calls.count("context")
        stream = session.stream(3)
        opened_now = machine.world.calls.count("context")
        assert opened_now == before + 3  # trunk for one frame and for several, branch
        assert sum(len(stream.push(frame)) for frame in clips(1, 5, 16)[0]) == 3
        assert machine.world.calls.count("context") == opened_now
        assert session._parts().at_once == 64
        first = list(session.describe()["plan_sha256"])
        assert first == ["video", "text", "trunk", "branch"]


def test_what_is_missing_is_named_with_its_command(machine):
    build_plans(machine.folder, machine.engine, PlanOptions(roles=("video", "trunk")))
    with opened(machine) as session, pytest.raises(InputError) as error:
        session.stream()
    format = {"trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}[machine.engine]
    assert str(error.value) == (
        f"folder {machine.folder} has no branch plan of engine {machine.engine}, which a stream "
        f"needs: stan-infer export {machine.folder} --format {format} --plans trunk,branch"
    )
    with opened(machine) as session:
        assert session.embed_video(clips(1, 6, 16)).shape[0] == 1


def test_plans_of_parts_alone_are_no_model(machine):
    plans = build_plans(machine.folder, machine.engine, PlanOptions(roles=("trunk", "branch")))
    with pytest.raises(InputError, match=f"no plan of a tower for engine {machine.engine}"):
        opened(machine)
    with pytest.raises(InputError, match="plan of the trunk graph, a part .*give its folder"):
        si.open_session(plans[0].path)


def test_windows_are_those_of_the_profiles(machine):
    options = PlanOptions(frames=[(3, 3, 3), (5, 5, 6)], batch=[(1, 1, 1)])
    build_plans(machine.folder, machine.engine, options)
    with opened(machine) as session:
        with pytest.raises(InputError, match="window is 7; .* from 3 to 6"):
            session.stream(7)
        with pytest.raises(InputError, match="has no profile for rows_0 1x4x5x32.*--frames"):
            session.stream(4)
        frames = clips(1, 6, 16)[0]
        (window,) = session.stream(6).extend(frames)
        assert relative_error(window.embedding, session.embed_video(frames[None])[0]) < FP32


def test_a_changed_plan_of_a_part_is_not_loaded(machine):
    plans = build_plans(machine.folder, machine.engine)
    flip(plans[3].path)
    with opened(machine) as session:
        session.embed_video(clips(1, 6, 16))
        with pytest.raises(InputError, match="branch.*a plan is code, so it is not loaded"):
            session.stream()


def test_a_folder_of_fixed_sizes_for_floats(machine, tiny_model, tmp_path):
    made = make_exported(tiny_model, split=True, input="float", frames=3, batch=2)
    machine.folder = shutil.copytree(made, tmp_path / "fixed")
    build_plans(machine.folder, machine.engine)
    frames = clips(1, 5, 16)[0]
    with opened(machine) as session:
        found = session.stream(3, 2).extend(frames)
        wanted = session.embed_video(np.stack([frames[:3], frames[2:]]))
        assert relative_error(np.stack([w.embedding for w in found]), wanted) < FP32
        parts = session._parts()
        rows = [x[None] for x in parts.trunk(frames[:3])]
        assert len(parts.branch(rows)) == 1


def test_inputs_go_by_their_names_and_outputs_are_checked(machine):
    build_plans(machine.folder, machine.engine)
    frames = clips(1, 6, 16)[0]
    with opened(machine) as session:
        parts = session._parts()
        rows = [x[None] for x in parts.trunk(frames)]
        wanted = parts.branch(rows)
        parts._names.reverse()
        assert torch.equal(parts.branch(rows[::-1]), wanted)
        parts._row = (6, 32)
        with pytest.raises(InputError, match="trunk.onnx returned rows_1 of sizes"):
            parts.trunk(frames)


def test_a_plan_of_another_part_is_not_run(machine):
    plans = build_plans(machine.folder, machine.engine)
    edit(plans[3].path, onnx_sha256="0" * 64)
    with opened(machine) as session:
        session.embed_video(clips(1, 6, 16))
        with pytest.raises(InputError, match="was built from another branch.onnx"):
            session.stream()
