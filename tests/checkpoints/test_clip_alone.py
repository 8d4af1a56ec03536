"""CLIP's weights given alone: what the file proves is taken, what it does not show is asked for."""

import contextlib
import functools
import json

import hypothesis.strategies as st
import open_clip
import pytest
import torch
from hypothesis import given, settings
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

from stan_infer.checkpoints.clip_alone import clip_alone
from stan_infer.checkpoints.load import inspect_checkpoint, load_model, save_model
from stan_infer.checkpoints.openclip import clip_config, names_like
from stan_infer.checkpoints.torch_file import open_torch_file
from stan_infer.config import parameter_shapes
from stan_infer.errors import InputError
from tests.checkpoints.test_openclip import transformers_names
from tests.conftest import relative_error

IGNORE = "ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning"
SIDE, CONTEXT, VOCABULARY = 32, 12, 300


def tiny_clip(*, quick_gelu=True):
    """open_clip's CLIP, small and with random weights."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=64, head_width=64, patch_size=16, image_size=SIDE)
    text = CLIPTextCfg(CONTEXT, VOCABULARY, width=64, heads=1, layers=2)
    return CLIP(64, vision, text, quick_gelu=quick_gelu).eval()


def traced(model, path):
    image, text = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, CONTEXT, dtype=torch.long)
    half = next(model.parameters()).dtype == torch.float16
    given = (image.half() if half else image, text)
    torch.jit.save(torch.jit.trace(model, given, check_trace=False), path)
    return path


def openai_archive(model, folder, *, half=False):
    """A TorchScript archive as OpenAI published them."""
    sizes = {"input_resolution": SIDE, "context_length": CONTEXT, "vocab_size": VOCABULARY}
    for name, size in sizes.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(size))
    return traced(model.half() if half else model, folder / "ViT-tiny.pt")


@pytest.mark.filterwarnings(*IGNORE)
@pytest.mark.parametrize("half", [False, True])
def test_an_archive_of_openai_is_read_and_not_run(tmp_path, half, caplog):
    theirs = tiny_clip()
    path = openai_archive(theirs, tmp_path, half=half)
    with open_torch_file(path) as file:
        assert file.hints["layout"] == "torchscript"
        wanted = torch.jit.load(path).state_dict()
        assert set(file.tensors) >= set(wanted)
        for key, value in wanted.items():
            assert torch.equal(file.read(key), value), key
    model = load_model(path)
    assert model.config.activation == "quick_gelu" and model.config.heads == 1
    assert "CLIP without a STAN branch" in caplog.text
    if not half:
        ids = torch.randint(1, VOCABULARY, (3, CONTEXT), generator=torch.manual_seed(1))
        wanted = theirs.encode_text(ids).detach()
        assert relative_error(model.encode_text(ids), wanted) < 1e-5
    for key, value in theirs.state_dict().items():
        if key in model.state_dict():
            assert torch.equal(model.state_dict()[key], value.float()), key


@pytest.mark.filterwarnings(*IGNORE)
def test_what_the_hint_of_old_versions_gave_is_read(tmp_path):
    """torch.save(torch.jit.load(path).state_dict()): the three sizes are not refused."""
    path = openai_archive(tiny_clip(), tmp_path)
    torch.save(torch.jit.load(path).state_dict(), tmp_path / "saved.pt")
    wanted = load_model(path).state_dict()
    for key, value in load_model(tmp_path / "saved.pt").state_dict().items():
        assert torch.equal(value, wanted[key])


@pytest.mark.filterwarnings(*IGNORE)
@pytest.mark.parametrize("form", ["traced", "scripted", "plain", "trainer", "module", "bin"])
def test_a_file_that_does_not_show_the_activation_asks(tmp_path, form):
    model, path = tiny_clip(), tmp_path / "clip.pt"
    state = model.state_dict()
    if form == "traced":
        traced(model, path)
    elif form == "scripted":
        torch.jit.save(torch.jit.script(model), path)
    elif form == "module":
        torch.save(model, path)
    elif form == "bin":
        torch.save(transformers_names(state), path)
    else:
        trained = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save(state if form == "plain" else trained, path)
    with pytest.raises(InputError, match=f"CLIP without a STAN branch.*give NAME:{path}.*--set"):
        inspect_checkpoint(path)
    for activation in ("gelu", "quick_gelu"):
        found = load_model(path, {"activation": activation})
        assert found.config.activation == activation
        for key in ("visual.proj", "visual.transformer.resblocks.1.attn.in_proj_weight"):
            assert torch.equal(found.state_dict()[key], state[key])


def test_the_message_has_the_exact_commands(tmp_path):
    state = open_clip.create_model("ViT-S-32-alt").state_dict()
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(InputError, match=rf"give ViT-S-32-alt:{tmp_path}/clip.pt \(gelu\), or"):
        load_model(tmp_path / "clip.pt")
    assert names_like(clip_config("ViT-B-32")) == {
        "ViT-B-32": "gelu",
        "ViT-B-32-quickgelu": "quick_gelu",
    }


def hf_folder(folder, **config):
    state = transformers_names(tiny_clip().state_dict())
    save_file(state, folder / "model.safetensors")
    given = {
        "model_type": "clip",
        "vision_config": {"num_attention_heads": 1, "hidden_act": "gelu"},
        "text_config": {"num_attention_heads": 1, "hidden_act": "gelu"},
    }
    (folder / "config.json").write_text(json.dumps(given | config))
    return folder


def test_a_folder_of_transformers_says_its_activation(tmp_path):
    folder = hf_folder(tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    for source in (folder, folder / "model.safetensors"):
        found = inspect_checkpoint(source)
        assert found.layout.config.activation == "gelu" and found.bytes == size
        assert "activation gelu: as config.json says" in found.layout.notes
    # What equals transformers' defaults may be absent: quick_gelu.
    hf_folder(tmp_path, vision_config={"num_attention_heads": 1}, text_config={})
    config = load_model(folder).config
    assert (config.heads, config.text_heads, config.activation) == (1, 8, "quick_gelu")
    hf_folder(tmp_path, text_config={"num_attention_heads": 1, "hidden_act": "quick_gelu"})
    with pytest.raises(InputError, match="for both towers"):
        load_model(folder)
    hf_folder(tmp_path, model_type="siglip")
    with pytest.raises(InputError, match="weights do not show"):
        load_model(folder)


def test_a_folder_of_open_clip_says_its_activation_and_pixels(tmp_path):
    save_file(tiny_clip().state_dict(), tmp_path / "open_clip_model.safetensors")
    vision = {"layers": 2, "width": 64, "patch_size": 16, "image_size": SIDE, "head_width": 32}
    text = {"width": 64, "heads": 4, "layers": 2}
    model = {"quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    said = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3}}
    place = tmp_path / "open_clip_config.json"
    place.write_text(json.dumps(said))
    config = load_model(tmp_path).config
    assert config.activation == "quick_gelu" and config.mean == (127.5,) * 3
    assert (config.heads, config.text_heads) == (2, 4)
    for part, odd in ((vision, "pool_type"), (text, "no_causal_mask"), (model, "nonscalar")):
        part[odd] = True
        place.write_text(json.dumps(said))
        with pytest.raises(InputError, match=f"not a plain CLIP ViT .*{odd}"):
            load_model(tmp_path)
        del part[odd]


def test_a_foreign_config_beside_our_own_file_is_not_read(tmp_path, tiny_model):
    save_model(tiny_model, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("// of another program")
    assert load_model(tmp_path / "model.safetensors").config == tiny_model.config


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
TOWER = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("hidden_act", "num_attention_heads", "layer_norm_eps"), JSON)
)
CONFIG = st.fixed_dictionaries(
    {"model_type": st.just("clip"), "vision_config": TOWER | JSON, "text_config": TOWER | JSON}
)
PIXELS = st.fixed_dictionaries({"mean": JSON | st.lists(st.floats() | st.integers())})
OPEN_CLIP = st.fixed_dictionaries(
    {
        "model_cfg": st.fixed_dictionaries(
            {"quick_gelu": JSON}, optional=dict.fromkeys(("vision_cfg", "text_cfg"), JSON)
        ),
        "preprocess_cfg": PIXELS | JSON,
    }
)


@functools.cache
def clip_shapes():
    return {k: tuple(v.shape) for k, v in tiny_clip().state_dict().items()}


@settings(max_examples=300, deadline=None)
@given(theirs=st.none() | CONFIG, ours=st.none() | OPEN_CLIP)
def test_a_strangers_config_gives_a_model_or_one_error(theirs, ours):
    hints = {"config.json": theirs, "open_clip_config.json": ours}
    shapes = clip_shapes()
    with contextlib.suppress(InputError):
        clip_alone(shapes, {k: v for k, v in hints.items() if v is not None}, {}, "x")


def test_the_heads_of_open_clips_widest_towers():
    """Not width / 64: the shapes alone would give 20 heads to ViT-H."""
    for name in ("ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-B-32", "ViT-L-14", "ViT-B-16-plus"):
        wanted = clip_config(name, {"activation": "gelu"})
        shapes = {n: s for n, s in parameter_shapes(wanted).items() if not n.startswith("branch.")}
        found = clip_alone(shapes, {}, {"activation": "gelu"}, "x").config
        assert found == wanted, name


def test_what_is_not_a_whole_clip_is_named(tmp_path):
    state = tiny_clip().state_dict()
    for part, message in (
        ("visual.ln_pre", "2 weights are missing: visual.ln_pre.bias"),
        ("token_embedding", "token_embedding.weight is missing: this is not a whole CLIP"),
        ("transformer.resblocks.0", "resblocks.0"),
    ):
        cut = {k: v for k, v in state.items() if part not in k}
        torch.save(cut, tmp_path / "cut.pt")
        with pytest.raises(InputError, match=message):
            load_model(tmp_path / "cut.pt", {"activation": "gelu"})
    torch.save({**state, "adapter.weight": torch.ones(2)}, tmp_path / "more.pt")
    with pytest.raises(InputError, match="unexpected weights: adapter.weight"):
        load_model(tmp_path / "more.pt", {"activation": "gelu"})
    both = {f"{p}.{k}": v for k, v in state.items() for p in ("student", "teacher")}
    torch.save(both, tmp_path / "two.pt")
    with pytest.raises(InputError, match="choose, as with --weights student"):
        load_model(tmp_path / "two.pt", {"activation": "gelu"})
