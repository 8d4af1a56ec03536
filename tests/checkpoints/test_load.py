"""Loading: values bit for bit, every kind of file, every kind of refusal."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.load import write_authors_checkpoint
from stan_infer.checkpoints.load import convert, inspect_checkpoint, load_model, save_model
from stan_infer.checkpoints.own import METADATA_KEY
from stan_infer.checkpoints.presets import preset
from stan_infer.errors import InputError, MissingError
from stan_infer.network.model import Stan, init_random
from tests.conftest import GOLDEN_CASES, clips, python, relative_error, tiny_config

HEADS = {"heads": 2, "text_heads": 2}


@pytest.fixture
def authors_file(tmp_path):
    path = tmp_path / "authors.pth"
    write_authors_checkpoint(path, tiny_config())
    return path


def authors_state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_random_weights_come_back_bit_for_bit(authors_file):
    wanted = init_random(Stan(tiny_config())).state_dict()
    model = load_model(authors_file, HEADS)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_convert_round_trips_bit_for_bit(golden, tmp_path, name):
    truth = json.loads(str(np.load((golden / name).with_suffix(".npz"))["config_json"]))
    settings = {"heads": truth["heads"], "text_heads": truth["th"], "head": "mug"}
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    config = convert(golden / name, first, settings)
    assert convert(first, second) == config
    assert first.read_bytes() == second.read_bytes()
    wanted, got = load_model(golden / name, settings), load_model(first)
    assert got.config == wanted.config == config
    for key, value in wanted.state_dict().items():
        assert torch.equal(value, got.state_dict()[key]), key


def test_convert_keeps_the_stored_dtype(golden, tmp_path):
    out = tmp_path / "d.safetensors"
    convert(golden / "d_fullvocab.pth", out, {"heads": 1, "text_heads": 1})
    assert {v.dtype for v in load_file(out).values()} == {torch.float16}


def test_save_model_loads_without_settings(tmp_path, tiny_model):
    save_model(tiny_model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.config == tiny_model.config
    video = torch.from_numpy(clips(2, 3, 16))
    assert torch.equal(again.encode_video(video), tiny_model.encode_video(video))


def test_the_authors_names_in_a_safetensors_file(authors_file, tmp_path):
    path = tmp_path / "hand.safetensors"
    save_file(authors_state(authors_file), path)
    wanted = load_model(authors_file, HEADS).state_dict()
    for name, value in load_model(path, HEADS).state_dict().items():
        assert torch.equal(value, wanted[name])


def test_mixed_dtypes_become_float32(authors_file, tmp_path):
    state = authors_state(authors_file)
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    mixed = {k: v.to(kinds[i % 4]) for i, (k, v) in enumerate(state.items())}
    torch.save(mixed, tmp_path / "mixed.bin")
    model = load_model(tmp_path / "mixed.bin", HEADS)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    key = "backbone.layers.1.self_attn.k_proj.weight"
    got = model.visual.transformer.resblocks[1].attn.in_proj_weight[32:64]
    assert torch.equal(got, mixed[key].float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(authors_file, tmp_path, bad):
    state = authors_state(authors_file)
    state["backbone.layers.2.mlp.fc1.weight"][3, 4] = bad
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="bad.pth.*layers.2.mlp.fc1.weight holds 1 values"):
        load_model(tmp_path / "bad.pth", HEADS)


def test_integer_weights_are_refused(authors_file, tmp_path):
    state = authors_state(authors_file)
    state["backbone.class_embedding"] = torch.zeros(32, dtype=torch.int64)
    torch.save(state, tmp_path / "ints.pth")
    with pytest.raises(InputError, match="class_embedding is int64"):
        load_model(tmp_path / "ints.pth", HEADS)


def test_our_metadata_is_checked(tmp_path, tiny_model):
    state = {k: v.contiguous() for k, v in tiny_model.state_dict().items()}
    config = tiny_model.config.to_dict()
    cases = {
        "not JSON": "{",
        "not a JSON object": "[1]",
        "unknown keys: evil": json.dumps(config | {"evil": 1}),
        "shape contradicts": json.dumps(config | {"mlp_width": 97}),
        "missing": json.dumps(config | {"text_layers": 3}),
        "unexpected": json.dumps(config | {"text_layers": 1}),
        "width is": json.dumps(config | {"width": 10**12}),
    }
    for message, text in cases.items():
        path = tmp_path / "m.safetensors"
        save_file(state, path, metadata={METADATA_KEY: text})
        with pytest.raises(InputError, match=message):
            load_model(path)


@pytest.mark.parametrize("cut", [9, 100, 5000])
def test_a_truncated_safetensors_file(tmp_path, tiny_model, cut):
    path = tmp_path / "m.safetensors"
    save_model(tiny_model, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="m.safetensors"):
        load_model(path)


def test_a_missing_file_and_a_mistyped_name(tmp_path):
    with pytest.raises(InputError, match="cannot read checkpoint .*No such file"):
        load_model(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="no such file"):
        load_model("absent.pth")
    with pytest.raises(InputError, match="did you mean 'ViT-B-32-quickgelu'"):
        load_model("ViT-B-32-quikgelu:openai")
    with pytest.raises(InputError, match="holds no weights"):
        load_model(tmp_path)


def test_an_open_clip_name_without_a_tag_is_never_random():
    with pytest.raises(InputError, match="random weights; add a tag.*openai"):
        load_model("ViT-B-32-quickgelu")
    with pytest.raises(InputError, match="has no weights 'opnai' for .*did you mean 'openai'"):
        load_model("ViT-B-32-quickgelu:opnai")
    with pytest.raises(InputError, match="not a plain CLIP ViT"):
        load_model("ViTamin-B:datacomp1b")
    found = inspect_checkpoint("ViT-B-32-quickgelu", {"frames": 8})
    assert found.layout.config == preset("stan-b32").replace({"frames": 8})


def test_weights_that_cannot_be_downloaded_name_the_way_out(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", fail)
    with pytest.raises(MissingError, match="no network.*ViT-B-32-quickgelu:PATH"):
        load_model("ViT-B-32-quickgelu:openai")


def test_a_branch_on_clip_is_clip_until_it_is_trained(tmp_path):
    theirs = open_clip.create_model("ViT-S-32-alt").eval()
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    model = load_model(f"ViT-S-32-alt:{tmp_path / 'clip.pt'}")
    config = model.config
    assert config.branch_layers == 4 and config.activation == "gelu"
    side = config.image_size
    video = torch.from_numpy(clips(1, 4, side))
    order = [2, 0, 3, 1]
    frames = model.encode_video(video)
    # The temporal output layer is zero, so the order of frames cannot matter yet.
    assert relative_error(model.encode_video(video[:, order]), frames[:, order]) < 1e-5
    ids = torch.zeros(1, 20, dtype=torch.long)
    ids[0, :3] = torch.tensor([49406, 320, 49407])
    padded = torch.nn.functional.pad(ids, (0, config.context_positions - 20))
    assert relative_error(model.encode_text(ids), theirs.encode_text(padded).detach()) < 1e-5
    assert load_model(f"ViT-S-32-alt:{tmp_path / 'clip.pt'}", {"branch_layers": 2}).config


def test_inspect_reads_no_weight_and_needs_no_torch(authors_file):

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from stan_infer.checkpoints.load import inspect_checkpoint\n"
        f"f = inspect_checkpoint({str(authors_file)!r}, {HEADS!r})\n"
        "print(f.layout.config.width, f.layout.config.branch_layers, sum(f.dtypes.values()))"
    )
    done = python("-c", code)
    count = sum(p.numel() for p in Stan(tiny_config()).parameters())
    assert done.stdout.split() == ["32", "2", str(count)], done.stderr


WRAPPED = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "fsdp": lambda key: key.replace("backbone.", "backbone._fsdp_wrapped_module."),
    "checkpointed layers": lambda key: key.replace(
        ".layers.0.", ".layers.0._checkpoint_wrapped_module."
    ),
    "several GPUs": lambda key: f"module.{key}",
    "all": lambda key: f"module._orig_mod.{key}".replace(
        ".layers.", "._fsdp_wrapped_module.layers."
    ),
}


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_of_wrappers_change_nothing(authors_file, tmp_path, form, suffix):
    wanted = load_model(authors_file, HEADS).state_dict()
    state = authors_state(authors_file)
    state |= {"logit_scale": torch.ones(()), "backbone.position_ids": torch.arange(5)[None]}
    state |= {"loss.logit_scale": torch.ones(()), "text_backbone.x.position_ids": torch.ones(1, 2)}
    wrapped = {WRAPPED[form](key): value.contiguous() for key, value in state.items()}
    path = tmp_path / f"wrapped{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": wrapped}, path)
    else:
        save_file(wrapped, path)
    for name, value in load_model(path, HEADS).state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_two_weights_of_one_name_are_refused(authors_file, tmp_path):
    state = authors_state(authors_file)
    key = next(iter(state))
    torch.save({**state, f"_orig_mod.{key}": state[key]}, tmp_path / "twice.pth")
    with pytest.raises(InputError, match=f"two weights are called {key}"):
        load_model(tmp_path / "twice.pth", HEADS)


def test_float8_safetensors(authors_file, tmp_path):
    state = {
        k: v.to(torch.float8_e4m3fn).contiguous() for k, v in authors_state(authors_file).items()
    }
    save_file(state, tmp_path / "f8.safetensors")
    model = load_model(tmp_path / "f8.safetensors", HEADS)
    name = "backbone.class_embedding"
    assert torch.equal(model.visual.class_embedding.flatten(), state[name].float().flatten())


def test_what_is_no_tensor_is_told(authors_file, tmp_path, caplog):
    state = authors_state(authors_file)
    torch.save({"state_dict": {**state, "epoch": 3}}, tmp_path / "more.pth")
    load_model(tmp_path / "more.pth", HEADS)
    assert "is left out: epoch (a value of type int)" in caplog.text


def test_a_mug_head_on_a_model_that_was_trained_without_is_told(tiny_model, tmp_path, caplog):
    save_model(tiny_model, tmp_path / "mean.safetensors")
    load_model(tmp_path / "mean.safetensors")
    assert "trained with head" not in caplog.text
    found = inspect_checkpoint(tmp_path / "mean.safetensors", {"head": "mug"})
    assert "the checkpoint was trained with head mean" in caplog.text
    assert "was not trained for head mug" in found.layout.notes[-1]
