"""Objects in checkpoints: tensors of classes of their own, whole modules, what stays a label."""

import dataclasses
import re
import types

import numpy as np
import pytest
import torch

from stan_infer.checkpoints import state_dicts
from stan_infer.checkpoints.pickle_values import Call, Placeholder
from stan_infer.checkpoints.state_dicts import find_state_dicts
from stan_infer.checkpoints.torch_file import open_torch_file
from stan_infer.errors import InputError
from tests.checkpoints.test_torch_file import SOUND, _text, checkpoint, refused, same


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


class Tagged(torch.Tensor):
    """A class of tensors that changes nothing in the values."""


def test_tensors_with_attributes_or_a_class_of_their_own(path):
    """As fastai's and torchvision's tensors, and weights that a sharding library has marked."""
    plain, parameter = torch.randn(3, 2), torch.nn.Parameter(torch.randn(2))
    plain.tag, parameter.is_sharded = "x", True
    kinds = {
        "attributes": plain,
        "class": torch.randn(2, 2).as_subclass(Tagged),
        "parameter": parameter,
        "buffer": torch.nn.Buffer(torch.randn(3)),
    }
    torch.save(kinds, path)
    with open_torch_file(path) as file:
        for name, value in kinds.items():
            assert torch.equal(file.read(name), value.detach().as_subclass(torch.Tensor)), name


@pytest.mark.parametrize("kind", ["a sparse", "a quantised", "a tensor on the meta device"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_are_not_plain_are_named(path, kind):
    value = {
        "a sparse": lambda: torch.eye(3).to_sparse(),
        "a quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "a tensor on the meta device": lambda: torch.empty(2, device="meta"),
    }[kind]()
    torch.save({"state_dict": {"w": torch.ones(2), "x": value}}, path)
    refused(path, f"tensor x is {kind}", "plain dense tensors")
    # Beside the weights they are in nobody's way.
    torch.save({"state_dict": {"w": torch.ones(2)}, "optimizer": {"x": value}}, path)
    with open_torch_file(path) as file:
        assert list(file.tensors) == ["w"]


def test_a_module_that_was_pickled_whole(path):
    whole = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.BatchNorm1d(2)))
    for saved in (whole, {"model": whole, "epoch": 3}):
        torch.save(saved, path)
        same(path, whole.state_dict())


class lowercase:  # noqa: N801
    """As configs and records of scripts are called."""


@dataclasses.dataclass
class _phase:  # noqa: N801
    name: str


def test_classes_in_lower_case_and_records_of_libraries_stay_labels(path):
    """A class's name says nothing of it: an object that only has attributes runs nothing."""
    extras = {
        "config": lowercase(),
        "phase": _phase("train"),
        "args": types.SimpleNamespace(lr=0.1),
        "random": np.random.RandomState(0),
        "generator": np.random.default_rng(0),
        "pattern": re.compile("a+"),
        "layout": torch.strided,
    }
    torch.save({"state_dict": {"w": torch.ones(4)}, **extras}, path)
    with open_torch_file(path) as file:
        assert list(file.tensors) == ["w"] and file.hints["others"] == list(extras)


def test_enums_of_a_script_stay_labels(path):
    call = b"c__main__\nphase\n" + _text("train") + b"\x85R"
    checkpoint(path, b"\x80\x02" + call + b"0" + SOUND[2:])
    with open_torch_file(path) as file:
        assert list(file.tensors) == ["w"]


def shared_modules(count, entries, *, tensors):
    """Modules under `count` names that share one dict of entries, as a memoised pickle gives."""
    entry = Call("tensor", ()) if tensors else None
    parts = {
        "_parameters": {f"w{i}": entry for i in range(entries)},
        "_buffers": {},
        "_modules": {},
    }
    return {f"m{i}": Placeholder("Module", parts) for i in range(count)}


@pytest.mark.parametrize(
    ("top", "words"),
    [
        (shared_modules(50, 19_000, tensors=True), "modules hold more than"),
        (shared_modules(2000, 20_000, tensors=False), "too many dicts and modules"),
    ],
)
def test_modules_that_share_their_entries_are_bounded(top, words):
    with pytest.raises(InputError, match=words):
        find_state_dicts(top)


def test_a_list_under_many_names_is_looked_at_once(monkeypatch):
    looked_at = []
    monkeypatch.setattr(state_dicts, "is_tensor", lambda value: looked_at.append(1))
    entries = [None] * 1000
    top = {f"a{i}": {f"b{j}": entries for j in range(9)} for i in range(79)}
    assert state_dicts._nameless(top) == () and len(looked_at) == 1000
