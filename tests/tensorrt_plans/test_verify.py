"""verify FOLDER PLAN on a stand-in for TensorRT; reported faults of TensorRT, by version."""

import re
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
