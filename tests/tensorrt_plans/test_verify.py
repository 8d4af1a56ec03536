"""verify FOLDER PLAN on a stand-in for TensorRT; reported faults of TensorRT, by version."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from stan_infer.artefacts.folder import read_artefact
from stan_infer.engines.trt_graph import PlanGraph
from stan_infer.engines.trt_session import TrtRtxSession, TrtSession
from stan_infer.errors import InputError
from stan_infer.tensorrt_plans.build import build_plans
from stan_infer.tensorrt_plans.known_faults import FAULTS, faults_of, known_faults
from stan_infer.tensorrt_plans.options import PlanOptions
from stan_infer.verification import plan_side
from tests.exported import exported as make_exported
from tests.verification.records import verify


@pytest.fixture
def here(machine, monkeypatch):
    """The stand-in's sessions take the place of those on a GPU."""
    kind = TrtRtxSession if machine.engine == "trt-rtx" else TrtSession
    monkeypatch.setattr(
        plan_side,
        "open_session",
        lambda path, device: kind(read_artefact(machine.folder), plan=path, cuda=machine.cuda),
    )
    return machine


def rows(record):
    return {r["stage"]: r["pass"] for r in record["stages"]}


def test_a_plan_that_is_right(here):
    plan, _ = build_plans(here.folder, here.engine)
    record = verify(here.folder, plan.path)
    assert record["pass"], record
    assert record["b"]["kind"] == "plan" and record["b"]["engine"] == here.engine
    found = rows(record)
    assert found["video tower"] and found["text tower"] and found["score"] and found["files"]


def test_a_plan_alone_is_one_tower(here):
    (plan,) = build_plans(here.folder, here.engine, PlanOptions(roles=("video",)))
    found = rows(verify(here.folder, plan.path))
    assert found["video tower"] is True and found["text tower"] is None


@pytest.fixture
def split(here, tiny_model):
    """A folder with both parts in the place of the machine's."""
    here.folder = shutil.copytree(make_exported(tiny_model, split=True), here.folder / "split")
    return here


def test_the_plans_of_the_parts_are_compared(split, monkeypatch):
    plan, *_ = build_plans(split.folder, split.engine)
    record = verify(split.folder, plan.path)
    (row,) = [r for r in record["stages"] if r["stage"] == "parts"]
    assert record["pass"] and row["pass"] and row["cases"] == 3, record
    assert row["reference"] == "its own video plan, on windows that overlap"
    right = PlanGraph.__call__

    def wrong(self, *given):
        found = right(self, *given)
        return {n: x * (1 + 0.1 * n.startswith("rows")) for n, x in found.items()}

    monkeypatch.setattr(PlanGraph, "__call__", wrong)
    assert verify(split.folder, plan.path)["first_failed"] == "parts"


def test_plans_without_those_of_the_parts_say_so(split):
    plan, *_ = build_plans(split.folder, split.engine, PlanOptions(roles=("video", "branch")))
    record = verify(split.folder, plan.path)
    (row,) = [r for r in record["stages"] if r["stage"] == "parts"]
    assert record["pass"] and row["pass"] is None
    assert row["note"] == f"not compared: the folder has no trunk plan of engine {split.engine}"


def test_windows_of_the_parts_are_those_of_the_profiles(split):
    found = {}
    for least in (1, 2):
        options = PlanOptions(frames=[(4, 5, 6)], batch=[(least, 2, 2)])
        plan, *_ = build_plans(split.folder, split.engine, options)
        record = verify(split.folder, plan.path)
        (found[least],) = [r for r in record["stages"] if r["stage"] == "parts"]
        assert record["pass"], record
    assert found[1]["pass"] and found[1]["cases"] == 2  # windows of 4 and of 6
    assert found[2]["pass"] is None and "no branch plan for one clip" in found[2]["note"]


def test_a_plan_that_lies_is_found_on_the_golden_clips(here, monkeypatch):
    """Like a fused attention that computes wrong numbers for some inputs, without an error."""
    plan, _ = build_plans(here.folder, here.engine)
    right = PlanGraph.run

    def wrong(self, feeds, outputs=None):
        found = right(self, feeds, outputs)
        return {
            n: np.where(np.abs(x) > 0.5 * np.abs(x).max(), 0.9 * x, x) for n, x in found.items()
        }

    monkeypatch.setattr(PlanGraph, "run", wrong)
    record = verify(here.folder, plan.path)
    assert not record["pass"] and record["first_failed"] == "video tower"


def test_sizes_stay_inside_the_profiles(here):
    options = PlanOptions(batch=[(2, 2, 3)], frames=[(4, 5, 6)], roles=("video",))
    (plan,) = build_plans(here.folder, here.engine, options)
    source = plan_side.PlanFile(plan.path)
    assert source.limits("batch") == (2, 3) and source.limits("frames") == (4, 6)
    assert rows(verify(here.folder, plan.path))["video tower"] is True


def test_a_changed_plan(here):
    (plan,) = build_plans(here.folder, here.engine, PlanOptions(roles=("video",)))
    source = plan_side.PlanFile(plan.path)
    assert not source.damage()
    plan.path.write_bytes(plan.path.read_bytes()[:-1] + b"?")
    assert any("a plan is code" in wrong for wrong in source.damage())
    with pytest.raises(InputError, match="a plan is code"):
        verify(here.folder, plan.path)


@pytest.mark.parametrize(
    ("version", "precision", "gpus", "numbers"),
    [
        ((10, 0, 0, 6), "fp16", [], ["3777", "4837"]),
        ((10, 0, 1, 6), "fp16", ["sm_89"], []),
        ((10, 3, 0, 26), "fp16", ["sm_90"], ["4723"]),
        ((10, 7, 0, 23), "fp32", ["sm_89"], ["4333"]),
        ((10, 16, 1, 11), "bf16", ["sm_120"], ["4837"]),
        ((10, 16, 1, 11), "fp32", ["sm_120"], []),
        ((11, 4, 0, 106), "fp16", [], []),
    ],
    ids=str,
)
def test_reported_faults(version, precision, gpus, numbers):
    found = known_faults("tensorrt", version, precision, gpus)
    assert [f["link"].rsplit("/", 1)[1] for f in found] == numbers
    wide = "NONE" if gpus else "AMPERE_PLUS"
    plan = SimpleNamespace(
        flavor="tensorrt", version=version, precision=precision, targets=(), hardware=wide,
        built_on=gpus[0] if gpus else "sm_80",
    )  # fmt: skip
    assert faults_of(plan) == found
    assert not known_faults("tensorrt_rtx", version, precision, gpus)


def test_every_fault_has_a_link_and_a_range():
    for fault in FAULTS:
        assert re.fullmatch(r"https://github.com/NVIDIA/TensorRT/issues/\d+", fault["link"])
        assert fault["versions"][0] <= fault["versions"][1] and fault["what"]
