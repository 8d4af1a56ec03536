"""Files with several sets of weights: which is read, which is the average, what is told."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.load import write_authors_checkpoint
from stan_infer.checkpoints.load import convert, inspect_checkpoint, load_model
from stan_infer.checkpoints.weight_sets import choose, find_sets
from stan_infer.errors import InputError
from tests.checkpoints.modules import Whole
from tests.conftest import tiny_config

HEADS = {"heads": 2, "text_heads": 2}
PROBE = "visual.class_embedding"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The state dict of a tiny STAN by the authors' names."""
    path = tmp_path_factory.mktemp("plain") / "authors.pth"
    write_authors_checkpoint(path, tiny_config())
    return dict(torch.load(path, weights_only=True)["state_dict"])


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def counted(state):
    """As torch's AveragedModel and mmengine's averages."""
    return {"n_averaged": torch.tensor(7), "steps": torch.tensor(3), **under("module.", state)}


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
# Form -> (what is saved, of ordinary weights w and their average a; what is read by default; the
# name of the averaged set).
FORMS = {
    "timm": (lambda w, a: {"state_dict": w, "state_dict_ema": a, "optimizer": OPTIMIZER}, "w",
             "state_dict_ema"),
    "DeiT": (lambda w, a: {"model": w, "model_ema": a, "epoch": 3}, "w", "model_ema"),
    "RT-DETR": (lambda w, a: {"model": w, "ema": {"module": a, "updates": 9}}, "w", "ema.module"),
    "BasicSR": (lambda w, a: {"params": w, "params_ema": a}, "w", "params_ema"),
    "AveragedModel": (lambda w, a: {"model": w, "ema": counted(a)}, "w", "ema"),
    "several GPUs": (
        lambda w, a: {"state_dict": under("module.", w), "ema_state_dict": counted(
            under("_orig_mod.", a))}, "w", "ema_state_dict"),
    "modules": (lambda w, a: {"model": Whole(w), "ema": Whole(a)}, "w", "ema"),
    "callback": (
        lambda w, a: {"state_dict": w, "callbacks": {"EMACallback": {"ema_state": a}}}, "w",
        "callbacks.EMACallback.ema_state"),
    "mmengine": (
        lambda w, a: {"meta": {"mmengine_version": "0.10"}, "message_hub": {}, "state_dict": a,
                      "ema_state_dict": counted(w)}, "a", "state_dict"),
    "Lightning": (
        lambda w, a: {"state_dict": a, "current_model_state": w,
                      "averaging_state": {"n_averaged": torch.tensor(4)}}, "a", "state_dict"),
    "ema-pytorch": (
        lambda w, a: {"initted": torch.tensor(True), "step": torch.tensor(4),
                      **under("online_model.", w), **under("ema_model.", a)}, "w", "ema_model"),
    "beside": (lambda w, a: {**under("model.", w), **under("ema_model.", a)}, "w", "ema_model"),
    "wrapped beside": (
        lambda w, a: {"state_dict": under("module.", {
            **under("model._orig_mod.", w),
            **under("ema_model.module._fsdp_wrapped_module.", a),
            "ema_model.n_averaged": torch.tensor(3)})}, "w", "ema_model"),
    "LitEma": (
        lambda w, a: {"state_dict": {
            **under("model.", w), "model_ema.decay": torch.tensor(0.9),
            "model_ema.num_updates": torch.tensor(5),
            **{f"model_ema.{k.replace('.', '')}": v for k, v in a.items()}}}, "w", "model_ema"),
}  # fmt: skip


def first(path, settings=None):
    return load_model(path, HEADS | (settings or {})).state_dict()[PROBE]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_average(plain, tmp_path, form, caplog):
    make, default, name = FORMS[form]
    average = {key: value + 1 for key, value in plain.items()}
    path = tmp_path / "both.pth"
    torch.save(make(plain, average), path)
    wanted = {"w": plain["backbone.class_embedding"], "a": average["backbone.class_embedding"]}
    whole = load_model(path, HEADS)
    assert torch.equal(whole.state_dict()[PROBE], wanted[default])
    assert "the file also has" in caplog.text
    for chosen in ("ema", name):
        model = load_model(path, HEADS | {"weights": chosen})
        assert torch.equal(model.state_dict()[PROBE], wanted["a"]), chosen
        for key, value in model.state_dict().items():
            ours = whole.state_dict()[key]
            assert torch.equal(value, ours + 1 if default == "w" else ours), key
    found = inspect_checkpoint(path, HEADS)
    assert [s["kind"] for s in found.weights if s["name"] == name] == ["averaged"]
    assert any("the file also has" in note for note in found.layout.notes)
    with pytest.raises(InputError, match=r"no set of weights called 'best'; its .*averaged\)"):
        load_model(path, HEADS | {"weights": "best"})
    if default == "a":
        other = next(s["name"] for s in found.weights if s["kind"] == "before averaging")
        assert torch.equal(first(path, {"weights": other}), wanted["w"])


def test_an_average_beside_in_a_safetensors_file(plain, tmp_path):
    path = tmp_path / "both.safetensors"
    average = {key: value + 1 for key, value in plain.items()}
    save_file({**plain, **under("ema.", average)}, path)
    assert torch.equal(first(path), plain["backbone.class_embedding"])
    assert torch.equal(first(path, {"weights": "ema"}), average["backbone.class_embedding"])
    out = tmp_path / "ema.safetensors"
    convert(path, out, HEADS | {"weights": "ema"})
    assert torch.equal(load_model(out).state_dict()[PROBE], average["backbone.class_embedding"])


def test_mmcv_exchanges_the_two_so_nothing_is_guessed(plain, tmp_path):
    buffers = {f"ema_{k.replace('.', '_')}": v + 1 for k, v in plain.items()}
    path = tmp_path / "mmcv.pth"
    torch.save({"meta": {}, "state_dict": {**plain, **buffers}}, path)
    assert torch.equal(first(path), plain["backbone.class_embedding"])
    with pytest.raises(InputError, match="does not show which is the average; choose"):
        first(path, {"weights": "ema"})
    assert torch.equal(first(path, {"weights": "ema_"}), plain["backbone.class_embedding"] + 1)


def test_a_file_of_one_set(plain, tmp_path, caplog):
    torch.save({"state_dict": plain}, tmp_path / "one.pth")
    with pytest.raises(
        InputError, match=r"no average of its weights; its only set is state_dict \("
    ):
        first(tmp_path / "one.pth", {"weights": "ema"})
    first(tmp_path / "one.pth", {"weights": "state_dict"})
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    torch.save({"ema": {"shadow": plain}}, tmp_path / "only.pth")
    with pytest.raises(InputError, match=r"does not show which .*--weights ema.shadow"):
        first(tmp_path / "only.pth")
    first(tmp_path / "only.pth", {"weights": "ema"})
    torch.save(under("ema_model.", plain), tmp_path / "all.pth")
    for chosen in ({}, {"weights": "ema"}):
        caplog.clear()
        first(tmp_path / "all.pth", chosen)
        is_told = "averaged) is read, and the file has no others" in caplog.text
        assert is_told == (chosen == {})
    shadows = {"shadow_params": list(plain.values()), "decay": 0.9}
    torch.save({"model": plain, "ema": shadows}, tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"without names \(ema.shadow_params\), not read"):
        first(tmp_path / "list.pth", {"weights": "ema"})


def test_an_average_without_some_weights_names_them(plain, tmp_path):
    part = {k: v for k, v in plain.items() if k != "backbone.class_embedding"}
    torch.save({"model": plain, "model_ema": part}, tmp_path / "part.pth")
    first(tmp_path / "part.pth")
    with pytest.raises(InputError, match="class_embedding"):
        first(tmp_path / "part.pth", {"weights": "ema"})


def test_other_parts_of_a_trainer_are_no_sets(plain, tmp_path):
    saved = {
        "state_dict": plain,
        "optimizer": {"state": {k: {"exp_avg": v} for k, v in plain.items()}},
        "optim_averages": {k: v for k, v in plain.items()},
        "teacher": {"net.weight": torch.ones(2)},
        "rng": torch.ones(3),
    }
    torch.save(saved, tmp_path / "trainer.pth")
    assert [s["name"] for s in inspect_checkpoint(tmp_path / "trainer.pth", HEADS).weights] == [
        "state_dict"
    ]


def test_a_layer_that_is_only_called_like_an_average_stays_a_weight(plain, tmp_path):
    torch.save({**plain, "avg_pool.weight": torch.ones(2), "step": torch.ones(())}, tmp_path / "a")
    with pytest.raises(InputError, match=r"1 unexpected weights: avg_pool\.weight"):
        first(tmp_path / "a")
    torch.save({"step": torch.ones(()), "decay": torch.ones(())}, tmp_path / "b")
    with pytest.raises(InputError, match="counters of a trainer"):
        first(tmp_path / "b")


@pytest.mark.parametrize("wrap", ["", "module.", "model."])
def test_a_student_and_its_teacher_must_be_chosen_from(plain, tmp_path, wrap):
    pair = {**under("student.", plain), "loss.center": torch.zeros(2)}
    pair |= under("teacher.module.", {key: value + 1 for key, value in plain.items()})
    path = tmp_path / "pair.pth"
    torch.save({"state_dict": under(wrap, pair)}, path)
    names = rf"student \({len(plain)} t.*teacher \({len(plain)} t.*: choose, .*--weights student"
    with pytest.raises(InputError, match=names):
        first(path)
    with pytest.raises(InputError, match="no average of its weights; its sets are student"):
        first(path, {"weights": "ema"})
    assert torch.equal(first(path, {"weights": "student"}), plain["backbone.class_embedding"])
    assert torch.equal(first(path, {"weights": "teacher"}), plain["backbone.class_embedding"] + 1)
    torch.save(under("student.", plain), path)  # alone it is no choice
    assert torch.equal(first(path), plain["backbone.class_embedding"])


def test_two_averages_must_be_chosen_by_name():
    keys = [f"a.{i}" for i in range(4)]
    sets = find_sets({"model": keys, "ema_fast": keys, "ema_slow": keys}, "model", {})
    with pytest.raises(
        InputError, match="several averages of its weights; its sets are .*ema_slow"
    ):
        choose(sets, "ema")
    assert choose(sets, "ema_slow")[0].name == "ema_slow"
    assert "--weights ema_fast reads" in str(choose(sets, None)[1])
