"""Every shipped configuration compiles for every GPU family, and is no worse than recorded."""

import json
import os

import pytest

from benchmarks import aot
from stan_infer.kernels.tuned import FAMILIES
from tests.conftest import ROOT, python

ROW = {
    "kernel": "_linear_kernel", "family": "sm90", "tile": [128, 128, 64, 8, 3], "registers": 100,
    "triton": "3.8.0", "spills": 0, "shared_bytes": 1000, "tensor": {"HGMMA": 4},
}  # fmt: skip


def compiling(*words):
    """Run Python where kernels are compiled: they are interpreted in this process."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return python(*words, cwd=ROOT, env=env).stdout


def test_all_configurations():
    compiling("-m", "benchmarks.aot", "--check")


SAME_CODE = """
import dataclasses
import torch
from triton import JITFunction
from benchmarks import aot
from stan_infer.kernels import linear, tiles

def code(case, family="sm90"):
    for module in (linear, tiles):
        for one in vars(module).values():
            if isinstance(one, JITFunction):
                one.hash = None
                one.device_caches.clear()
    ((name, specialised),) = aot.calls(case, family)
    return specialised.code

cases = list(aot.cases("sm90", torch.float16, "cpu", full=False))
case = next(c for c in cases if c.operation == "linear" and "norm" in c.name)
first = code(case)
linear._linear_kernel.starting_line_number += 7
assert code(case) == first
for function in (linear._linear_kernel, tiles.norm_of_sums):  # which the kernel calls
    before = function.src
    function._unsafe_update_src(before + "    # another\\n")
    assert code(case) != first, function
    function._unsafe_update_src(before)
    assert code(case) == first
tile = dataclasses.replace(case.tile, stages=case.tile.stages + 1)
others = {code(case, "sm80"), code(dataclasses.replace(case, tile=tile)), first}
assert len(others) == 3

# What is recorded for this code is not compiled, what is recorded for another is.
jobs = [j for j in aot.jobs() if j[:2] == ("sm90", "float16")]
job = next(j for j, c in zip(jobs, cases, strict=True) if c.operation == "head_rows")
(row,) = aot.compile_case(job)
planted = {**row, "registers": -1}
assert aot.compile_case(job, {aot._key(row): planted}) == [planted]
for change in ({"code": "other"}, {"triton": "other"}):
    assert aot.compile_case(job, {aot._key(row): planted | change}) == [row]
"""


def test_what_is_recorded_for_the_same_code_is_not_compiled_again():
    compiling("-c", SAME_CODE)


def test_each_kernel_is_compiled_although_recorded():
    rows = [json.loads(line) for line in aot.PATH.read_text().splitlines()]
    again = [r for r in rows if aot._key(r) in aot.to_compile_again(rows)]
    assert sorted(r["kernel"] for r in again) == sorted({r["kernel"] for r in rows})
    assert {r["family"] for r in again} == set(FAMILIES)


def test_what_is_recorded():
    rows = [json.loads(line) for line in aot.PATH.read_text().splitlines()]
    assert {r["family"] for r in rows} == set(FAMILIES)
    assert all(r["spills"] == 0 for r in rows)
    for family, name in (("sm90", "HGMMA"), ("sm100", "UTCHMMA"), ("sm80", "HMMA")):
        assert any(name in r["tensor"] for r in rows if r["family"] == family)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"spills": 3}, "3 spill"),
        ({"shared_bytes": 228 * 1024}, "227 KiB allowed"),
        ({"tensor": {}}, "no tensor-core"),
        ({"tensor": {"HMMA": 8}}, "HGMMA"),
        ({"code": "a"}, "recorded for other code"),
        ({"registers": 120}, "registers 120, recorded 100"),
        ({"shared_bytes": 1200}, "shared_bytes 1200, recorded 1000"),
    ],
    ids=str,
)
def test_what_is_a_regression(change, words):
    found = list(aot.problems({**ROW, **change}, ROW))
    assert found == [] if words is None else any(words in f for f in found), found
    assert list(aot.problems({**ROW, **change}, {**ROW, "triton": "3.7.0"})) == [
        f for f in found if "recorded" not in f
    ]
    assert list(aot.problems(ROW, None)) == ["not recorded: run python -m benchmarks.aot"]
