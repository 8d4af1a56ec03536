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


def test_all_configurations():
    """Compiled in another process: kernels are interpreted in this one."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    python("-m", "benchmarks.aot", "--check", cwd=ROOT, env=env)


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
