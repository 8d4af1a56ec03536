"""Commands on checkpoints of several sets of weights, on CLIP's weights, and what they refuse."""

from contextlib import closing
from types import SimpleNamespace

import pytest
import torch

from stan_infer.checkpoints.load import load_model, save_model
from stan_infer.engines.open import open_session
from stan_infer.evaluation.from_files import open_cache
from tests.checkpoints.test_clip_alone import IGNORE, openai_archive, tiny_clip
from tests.conftest import ROOT, tiny_config
from tests.exported import exported

pytestmark = pytest.mark.filterwarnings(*IGNORE)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A file with ordinary weights and their average, and the model of each."""
    from benchmarks.load import write_authors_checkpoint

    folder = tmp_path_factory.mktemp("both")
    write_authors_checkpoint(folder / "plain.pth", tiny_config())
    plain = torch.load(folder / "plain.pth", weights_only=True)["state_dict"]
    average = {key: value * 1.01 for key, value in plain.items()}
    torch.save({"state_dict": plain, "state_dict_ema": average}, folder / "both.pth")
    return folder / "both.pth"


MOTION = ROOT / "examples" / "motion" / "clips"
HEADS = ("--set", "heads=2", "--set", "text_heads=2")


def test_inspect_lists_the_sets(cli, both):
    done = cli("inspect", both, *HEADS, says="--weights ema reads it instead")
    assert "state_dict_ema  averaged" in done.out
    record = cli("inspect", both, *HEADS, "--json", "--weights", "ema").records[0]
    assert [(s["name"], s["read"]) for s in record["weights"]] == [
        ("state_dict", False),
        ("state_dict_ema", True),
    ]
    cli("inspect", both, *HEADS, "--weights", "best", code=2, says="its sets are state_dict (")
    cli("inspect", both, "--set", "weights=ema", code=2, says="give --weights ema")


def test_convert_of_a_set(cli, both, tmp_path):
    cli("convert", both, tmp_path / "ema.safetensors", *HEADS, "--weights", "ema")
    ema = load_model(both, {"heads": 2, "text_heads": 2, "weights": "ema"}).state_dict()
    for key, value in load_model(tmp_path / "ema.safetensors").state_dict().items():
        assert torch.equal(value, ema[key])


def test_a_folder_and_a_name_have_no_sets(cli, tiny_model):
    folder = exported(tiny_model)
    cli("inspect", folder, "--weights", "ema", code=2, says="--weights belong to a checkpoint")
    cli("export", folder, "--format", "triton-server", "-o", "x", "--weights", "ema", code=2,
        says="--weights changes nothing")  # fmt: skip
    cli("verify", folder, folder, "--weights", "ema", code=2, says="neither side is one")
    cli("bench", folder, "--weights", "ema", code=2, says="belong to a checkpoint")
    cli("embed", folder, MOTION, "-o", "v.npz", "--weights", "ema", code=2, says="to a checkpoint")
    cli("inspect", "ViT-B-32", "--weights", "ema", code=2, says="chooses in a file")


def test_kept_features_belong_to_a_set_and_to_the_bytes_behind_a_name(tmp_path, tiny_model):
    with closing(open_session(tiny_model)) as session:
        facts, config = session.describe(), session.config
    a = tmp_path / "a.pt"
    sources = (str(a), None), (str(a), "ema"), (f"ViT-B-32:{a}", None)
    places = set()
    for content, given in ((b"1", sources), (b"2", sources[-1:])):
        a.write_bytes(content)
        for source, weights in given:
            options = {"settings": {"weights": weights}}
            session = SimpleNamespace(options=options, describe=lambda: facts, config=config)
            places.add(open_cache(tmp_path / "kept", source, session)._folder)
    assert len(places) == 3  # the same bytes with and without a name give the same config here


def test_inspect_looks_into_the_path_behind_a_name(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    cli("inspect", f"ViT-B-32:{tmp_path / 'empty'}", code=2, says="holds no weights")
    torch.save({"w": torch.ones(2)}, tmp_path / "other.pt")
    cli("inspect", f"ViT-B-32:{tmp_path / 'other.pt'}", code=2, says="not a CLIP ViT's weights")
    save_model(load_model(openai_archive(tiny_clip(), tmp_path)), tmp_path / "own.safetensors")
    name = f"ViT-B-32:{tmp_path / 'own.safetensors'}"
    cli("inspect", name, code=2, says="this is a STAN, with a branch: give it alone")


def test_inspect_of_clip_alone(cli, tmp_path):
    path = openai_archive(tiny_clip(), tmp_path)
    record = cli("inspect", path, "--json").records[0]
    assert record["layout"] == "CLIP" and record["file_bytes"] == path.stat().st_size
    assert record["config"]["activation"] == "quick_gelu"
    assert "without a STAN branch" in record["notes"][0]
