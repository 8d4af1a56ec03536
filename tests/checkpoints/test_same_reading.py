"""One state dict written in many ways is read as the same, or an error names the difference."""

import io
import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save_file

from benchmarks.load import write_authors_checkpoint
from stan_infer.checkpoints.weights_file import opened
from stan_infer.errors import InputError
from tests.checkpoints.modules import Whole
from tests.conftest import tiny_config

WRAPPERS = (None, "state_dict", "model", "model_state_dict", "module", "net", "params",
            "model.state_dict", "state_dict.model")  # fmt: skip
OUTER = ("", "module.", "_orig_mod.", "module._orig_mod.", "module.module.",
         "_fsdp_wrapped_module.", "module._fsdp_wrapped_module._orig_mod.")  # fmt: skip
INNER = ("", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.",
         "_checkpoint_wrapped_module._fsdp_wrapped_module._orig_mod.")  # fmt: skip
EXTRAS = {
    "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "args": {"lr": 0.1},
    "rng_state": torch.arange(4), "scheduler": {"last_lr": [0.1]}, "best": None,
}  # fmt: skip
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FORMATS = ("zip", "zip, protocol 4", "legacy", "safetensors", "safetensors shards", "bin shards",
           "parameters", "attributes", "module")  # fmt: skip


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A few weights of a tiny STAN by the authors' names."""
    path = tmp_path_factory.mktemp("state") / "authors.pth"
    write_authors_checkpoint(path, tiny_config())
    whole = torch.load(path, weights_only=True)["state_dict"]
    return {k: v for i, (k, v) in enumerate(whole.items()) if i % 9 == 0}


def with_attributes(value):
    """A tensor that pickles with a class and attributes of its own."""
    value = value.clone()
    value.tag = "weight"
    return value


def sharded(folder, state, kind):
    """Write a state dict in two files and their index, which is returned."""
    parts, places = [{}, {}], {}
    for i, (key, value) in enumerate(state.items()):
        parts[i % 2][key] = value
        places[key] = f"part-{i % 2}.{kind}"
    for i, part in enumerate(parts):
        (torch.save if kind == "bin" else save_file)(part, folder / f"part-{i}.{kind}")
    index = folder / f"model.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


@st.composite
def ways(draw):
    return {
        "format": draw(st.sampled_from(FORMATS)),
        "wrapper": draw(st.sampled_from(WRAPPERS)),
        "outer": draw(st.sampled_from(OUTER)),
        "inner": draw(st.sampled_from(INNER)),
        "order": draw(st.randoms(use_true_random=False)),
        "extras": draw(st.sets(st.sampled_from(sorted(EXTRAS)))),
        "dtype": draw(st.sampled_from(DTYPES)),
        "left": draw(st.booleans()),
    }


def save(path, state, way):
    """Write a state dict as `way` says; return the path to give."""
    kind = way["format"]
    names = list(state)
    way["order"].shuffle(names)
    named = {}
    for name in names:
        first, _, rest = name.partition(".")
        named[f"{way['outer']}{first}.{way['inner']}{rest}"] = state[name].to(way["dtype"]).clone()
    if kind == "safetensors":
        save_file(named, path / "model.safetensors")
        return path / "model.safetensors"
    if "shards" in kind:
        return sharded(path, named, kind.split()[0])
    if kind == "module":
        named = Whole(named)
    elif kind == "parameters":
        named = {k: torch.nn.Parameter(v, requires_grad=False) for k, v in named.items()}
    elif kind == "attributes":
        named = {k: with_attributes(v) for k, v in named.items()}
    if way["left"] and isinstance(named, dict):
        named["_extra_state"] = {"version": 2}
    whole = named
    for word in reversed((way["wrapper"] or "").split(".")):
        whole = {word: whole} if word else whole
    if isinstance(whole, dict) and way["wrapper"]:
        whole |= {k: EXTRAS[k] for k in way["extras"] if k not in whole}
    file = io.BytesIO()
    protocol = {"zip, protocol 4": 4}.get(kind, 2)
    zipped = kind != "legacy"
    torch.save(whole, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    (path / "model.pt").write_bytes(file.getvalue())
    return path / "model.pt"


def check(state, path, way):
    given_path = save(path, state, way)
    try:
        with opened(given_path) as reader:
            assert set(reader.tensors) == set(state)
            for name, value in state.items():
                got = reader.read(name)
                assert got.dtype == way["dtype"] and got.is_contiguous()
                assert torch.equal(got, value.to(way["dtype"])), name
    except InputError as e:
        assert way["format"] == "legacy" and "before 1.6" in str(e), (way, e)
    else:
        assert way["format"] != "legacy"


NO_CHECKS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=60, **NO_CHECKS)
@given(way=ways())
def test_every_way_of_writing_is_read_as_the_same(state, tmp_path_factory, way):
    check(state, tmp_path_factory.mktemp("way"), way)


@settings(max_examples=1500, **NO_CHECKS)
@given(way=ways())
def test_many_ways_of_writing_are_read_as_the_same(state, tmp_path_factory, way):
    check(state, tmp_path_factory.mktemp("way"), way)
