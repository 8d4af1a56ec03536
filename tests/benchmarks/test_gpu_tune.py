"""The tuner's own logic, without a GPU: candidates, who may win, what is written."""

import dataclasses
import json
import os
import shutil

import pytest
import torch

from benchmarks.gpu import tune
from benchmarks.gpu.cases import Shape
from benchmarks.gpu.stand_in import StandIn
from benchmarks.gpu.timing import Device
from stan_infer.kernels import tuned
from stan_infer.kernels.tuned import Tile
from tests.conftest import ROOT

TINY = Shape(2, 3, 4, 32, 8, 16)


def rows(**ratios):
    """Rows of one unit: ways with their ratio to the rule."""
    head = {"ms_p50": 1.0, "unit": "one"}
    found = [{**head, "lane": "rule", "ratios": {}}]
    return found + [{**head, "lane": k, "ratios": {"rule": r}} for k, r in ratios.items()]


def test_who_wins():
    assert tune.winner(rows(library=1.01)) == "rule"
    assert tune.winner(rows(library=1.1, other=1.2)) == "other"
    assert tune.winner(rows()) == "rule"
    refused = {"lane": "library", "unit": "one", "refused": "outputs differ"}
    assert tune.winner([*rows(library=1.5), refused]) == "rule"  # the newest row counts
    assert tune.winner([{"lane": "rule", "unit": "one", "refused": "no memory"}]) is None


@pytest.mark.parametrize("choice", tune.CHOICES)
def test_every_way_computes_the_same(choice):
    device = Device("cpu", StandIn())
    with torch.inference_mode():
        reference, picked, calls = tune.ways(TINY, choice, "float32", device, 2)
        wanted = tune.tree_leaves(reference())
    assert (picked is None) == (choice == "trunk")
    for name, runs in calls.items():
        assert tune.check(runs, wanted, 1e-4) < 1e-4, name


@pytest.mark.parametrize("fault", ["one value", "not a number", "not written"])
def test_a_tile_that_computes_another_result_cannot_win(fault):
    wanted = [torch.randn(8, 8)]

    def run():
        y = torch.empty(8, 8)
        y.copy_(wanted[0])
        if fault == "one value":
            y[3, 3] += 0.1
        elif fault == "not a number":
            y[7, 7] = float("nan")
        else:  # memory that holds what a tile before wrote looks right
            y = torch.empty(8, 8)
            y[:7] = wanted[0][:7]
        return y

    with pytest.raises(RuntimeError, match="outputs differ"):
        tune.check([run], wanted, 1e-2)


def test_weights_of_a_bundle_are_not_the_same_memory():
    device = Device("cpu", StandIn())
    case = tune.cases.linear_case(TINY, tune.cases.random(torch.float32, "cpu"), "a", 32, 32)
    copies = tune.rotated(case, device.calls)
    assert len({c.args[1].data_ptr() for c in copies}) == device.calls
    assert len({c.args[0].data_ptr() for c in copies}) == 1


@pytest.mark.parametrize("sm", ["sm80", "sm86", "sm89", "sm90", "sm100", "sm120"])
@pytest.mark.parametrize("operation", tune.GRIDS)
def test_candidates_fit(sm, operation):
    found = tune.candidates(operation, sm, {"rows": 18912, "n": 3072}, 2, 132)
    assert len(found) == len(set(found)) and set(tuned.tiles(operation, sm)) <= set(found)
    for tile in found:
        assert tuned.shared_bytes(operation, tile) <= tuned.SHARED_KIB[sm] * 1024, tile
        assert not tile.persistent or int(sm[2:]) >= 90
    if operation == "linear":
        sizes = {(t.bm, t.bn) for t in found}
        assert {(128, 256), (256, 128), (16, 64), (32, 64)} <= sizes
        assert any(t.maxnreg for t in found)


def test_a_key_names_the_network():
    b16, l14 = Shape(8, 12, 196, 768, 16), Shape(8, 12, 196, 1024, 16)
    for choice in tune.CHOICES:
        assert tune.key(b16, choice, "float16")[1] != tune.key(l14, choice, "float16")[1]


def test_the_most_valuable_comes_first():
    first = next(tune.units())
    assert first.spec["shape"]["width"] == 768 and first.spec["shape"]["batch"] == 8
    assert first.spec["choice"] == "fc1"


def test_writing_the_table(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    shutil.copy(ROOT / "kernels" / "tuned.json", path)
    before = json.loads(path.read_text())
    operation, key = tune.key(TINY, "fc1", "float16")
    tile = Tile(64, 64, 64, 4, 4)
    tune.put(path, "sm90", operation, {**key, "best": "library"})
    tune.put(path, "sm80", operation, {**key, "best": "library"})
    tune.put(path, "sm90", operation, {**key, "rows": 9999, "best": "rule"})
    tune.put(path, "sm90", operation, {**key, "best": list(dataclasses.astuple(tile))})
    table = json.loads(path.read_text())
    assert table["tiles"] == before["tiles"]
    own = [r for r in table["measured"]["sm90"]["linear"] if r["rows"] == key["rows"]]
    assert len(own) == 1  # the newest one
    monkeypatch.setattr(tuned, "table", lambda: table)
    shape = {k: v for k, v in key.items() if k != "dtype"}
    assert tuned.chosen("linear", "sm90", torch.float16, **shape) == tile
    assert tuned.chosen("linear", "sm80", torch.float16, **shape) == "library"


def test_the_table_is_whole_at_any_moment(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    shutil.copy(ROOT / "kernels" / "tuned.json", path)
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tune.put(path, "sm90", "linear", {"rows": 1, "dtype": "float16", "best": "rule"})
    assert path.read_bytes() == before
