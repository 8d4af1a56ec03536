"""open_clip's names and tags: what its weights were trained with is what runs."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from stan_infer.checkpoints.load import load_model
from stan_infer.checkpoints.openclip import clip_layout
from stan_infer.errors import InputError


def plain_pairs():
    """All pairs of a model and a tag whose model is a plain CLIP ViT."""
    for name, tag in open_clip.list_pretrained():
        try:
            yield name, tag, clip_layout(f"{name}:{tag}")
        except InputError:
            continue


def test_every_tag_runs_with_what_it_was_trained_with():
    """18 of 80 pairs have a name of the other activation; open_clip warns, we take the tag's."""
    found = list(plain_pairs())
    assert len(found) >= 75
    other = 0
    for name, tag, layout in found:
        theirs = open_clip.get_pretrained_cfg(name, tag)
        is_quick = bool(theirs.get("quick_gelu"))
        assert layout.config.activation == ("quick_gelu" if is_quick else "gelu"), (name, tag)
        for ours, wanted in zip(layout.config.mean, theirs["mean"], strict=True):
            assert ours == pytest.approx(255 * wanted, abs=1e-3), (name, tag)
        for ours, wanted in zip(layout.config.std, theirs["std"], strict=True):
            assert ours == pytest.approx(255 * wanted, abs=1e-3), (name, tag)
        resized = theirs["interpolation"], theirs["resize_mode"]
        is_told = any("frames are read with" in note for note in layout.notes)
        assert is_told == (resized != ("bilinear", "shortest")), (name, tag)
        other += is_quick != bool(open_clip.get_model_config(name).get("quick_gelu"))
    assert other >= 15


def test_what_is_told(tmp_path):
    layout = clip_layout("ViT-B-32:openai")
    assert "openai was trained with activation quick_gelu, which is used" in layout.notes
    layout = clip_layout("ViT-B-32:openai", {"activation": "gelu"})
    assert "openai was trained with activation quick_gelu, but gelu was asked for" in layout.notes
    (tmp_path / "weights.pt").touch()
    layout = clip_layout(f"ViT-B-32:{tmp_path / 'weights.pt'}")
    assert "activation gelu is that of the name ViT-B-32" in layout.notes[-1]


NAME = "ViT-S-32-alt"


@pytest.fixture(scope="module")
def clip():
    """open_clip's smallest ViT with random weights, and a STAN branch on it."""
    torch.manual_seed(0)
    state = open_clip.create_model(NAME).state_dict()
    return {k: v.clone() for k, v in state.items()}


def transformers_names(state):
    """As transformers' conversion of CLIP renames: q, k, v apart, projections transposed."""
    found = {"vision_model.embeddings.position_ids": torch.arange(50)[None]}
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    }
    for key, value in state.items():
        if key == "attn_mask":
            continue
        if key in ("visual.proj", "text_projection"):
            found[f"{'visual' if key[0] == 'v' else 'text'}_projection.weight"] = (
                value.T.contiguous()
            )
            continue
        name = names.get(key, key)
        tower = "vision_model" if key.startswith("visual.") else "text_model"
        name = name.removeprefix("visual.").replace(
            "transformer.resblocks", f"{tower}.encoder.layers"
        )
        for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
            name = name.replace(ours, f"vision_model.{theirs}")
        name = name.replace("ln_final", "text_model.final_layer_norm")
        for ours, theirs in (
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("attn.", "self_attn."),
            ("c_fc", "fc1"),
            ("c_proj", "fc2"),
        ):
            name = name.replace(f".{ours}", f".{theirs}")
        if "in_proj_" in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                found[name.replace("in_proj_", f"{part}_proj.")] = piece.clone()
        else:
            found[name] = value
    return found


def forms(state, folder):
    """Every form in which such weights lie about -> the path that is given."""
    torch.save(state, folder / "plain.pt")
    yield folder / "plain.pt"
    trained = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(trained, folder / "trainer.pt")
    yield folder / "trainer.pt"
    theirs = transformers_names(state)
    (folder / "hf").mkdir()
    save_file(theirs, folder / "hf" / "model.safetensors")
    yield folder / "hf"
    yield folder / "hf" / "model.safetensors"
    (folder / "bin").mkdir()
    torch.save(theirs, folder / "bin" / "pytorch_model.bin")
    yield folder / "bin"
    (folder / "shards").mkdir()
    parts = {f"model-{i}.safetensors": {} for i in range(3)}
    places = {}
    for i, (key, value) in enumerate(theirs.items()):
        places[key] = f"model-{i % 3}.safetensors"
        parts[places[key]][key] = value
    for name, part in parts.items():
        save_file(part, folder / "shards" / name)
    index = folder / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    yield folder / "shards"
    yield index


def test_every_form_of_clip_gives_the_same_model(clip, tmp_path):
    wanted = None
    for path in forms(clip, tmp_path):
        state = load_model(f"{NAME}:{path}").state_dict()
        wanted = wanted or state
        for name, value in wanted.items():
            assert torch.equal(state[name], value), (path, name)
    assert torch.equal(wanted["visual.proj"], clip["visual.proj"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.pop("weight_map"), "no weight_map"),
        (
            lambda i: i["weight_map"].update(x="../plain.pt"),
            "no weight_map of keys to files beside",
        ),
        (lambda i: i["weight_map"].update(x="model-0.safetensors"), "weight x is not in model-0"),
        (lambda i: i["weight_map"].update(x="none.safetensors"), "cannot read checkpoint"),
    ],
)
def test_an_index_that_misleads_is_refused(clip, tmp_path, change, message):
    *_, path = forms(clip, tmp_path)
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=message) as caught:
        load_model(f"{NAME}:{path}")
    assert str(path.parent) in str(caught.value)


def test_an_error_in_the_weights_names_their_file(clip, tmp_path):
    torch.save({k: v for k, v in clip.items() if k != "visual.proj"}, tmp_path / "cut.pt")
    with pytest.raises(InputError, match=r"cut\.pt: 1 weights are missing: visual\.proj"):
        load_model(f"{NAME}:{tmp_path / 'cut.pt'}")
