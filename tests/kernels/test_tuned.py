import pytest
import torch

from stan_infer.kernels import tuned
from stan_infer.kernels.tuned import Tile, fill

CPU, F16 = torch.device("cpu"), torch.float16


@pytest.fixture
def h100(monkeypatch):
    """Tiles as on an H100, of which only the numbers are needed."""
    monkeypatch.setattr(tuned, "family", lambda device: "sm90")
    monkeypatch.setattr(tuned, "processors", lambda device: 132)


def test_every_family_has_every_operation():
    operations = set(tuned.table()["tiles"]["cpu"])
    for family in tuned.FAMILIES:
        assert set(tuned.table()["tiles"][family]) == operations
        for operation in operations - {"fp8_linear"}:
            assert tuned.tiles(operation, family)
    assert not tuned.tiles("fp8_linear", "sm80")


@pytest.mark.parametrize("t", range(1, 65))
def test_every_number_of_frames_has_a_tile(t, h100):
    """The largest tile that keeps two programs per processor; a sequence always fits."""
    tile = tuned.temporal_tile(CPU, F16, t, 196 * 12)
    assert tile.bm >= t
    for tile in tuned.qkv_tiles("sm90", t):
        assert fill(tile.bm, t) >= tuned.MIN_FILL


def test_the_rule_for_few_programs(h100):
    assert tuned.temporal_tile(CPU, F16, 12, 8 * 196 * 12).bm == 64
    assert tuned.temporal_tile(CPU, F16, 12, 49 * 12).bm == 32
    assert tuned.temporal_tile(CPU, F16, 8, 300).bm == 16
    # B/32, one clip of 12 frames: 60 programs of 128 rows would leave half of an H100 idle.
    assert tuned.temporal_qkv_tile(CPU, F16, 12, 49, 12).bm == 64
    assert tuned.temporal_qkv_tile(CPU, F16, 12, 8 * 196, 12).bm == 128
    assert not tuned.qkv_tiles("sm90", 45)
    assert tuned.linear_tile(CPU, F16, 600, 768, 768) == Tile(64, 64, 64, 4, 4)
    assert tuned.linear_tile(CPU, F16, 18912, 768, 768).bm == 128


def test_what_was_measured_goes_first(h100, monkeypatch):
    row = {"dtype": "float16", "rows": 700, "n": 768, "k": 768, "best": [32, 64, 64, 2, 5]}
    other = {**row, "rows": 5000, "best": "library"}
    table = {**tuned.table(), "measured": {"sm90": {"linear": [other, row]}}}
    monkeypatch.setattr(tuned, "table", lambda: table)
    assert tuned.linear_tile(CPU, F16, 600, 768, 768) == Tile(32, 64, 64, 2, 5)
    assert not tuned.library_is_faster("sm90", F16, 600, 768, 768)
    assert tuned.library_is_faster("sm90", F16, 701, 768, 768)
    assert not tuned.library_is_faster("sm90", F16, 5001, 768, 768)
    assert not tuned.library_is_faster("sm90", torch.bfloat16, 701, 768, 768)
    assert not tuned.library_is_faster("sm100", F16, 701, 768, 768)


def test_attention_that_was_measured(h100, monkeypatch):
    row = {"dtype": "float16", "rows": 500, "frames": 12, "best": "linear"}
    other = {**row, "frames": 45, "best": [64, 64, 32, 4, 3]}
    table = {**tuned.table(), "measured": {"sm90": {"temporal_qkv_attention": [row, other]}}}
    monkeypatch.setattr(tuned, "table", lambda: table)
    assert not tuned.fuses_qkv("sm90", F16, 12, 400)
    assert tuned.fuses_qkv("sm90", F16, 12, 501) and tuned.fuses_qkv("sm90", F16, 8, 400)
    assert tuned.fuses_qkv("sm90", F16, 45, 400) and not tuned.fuses_qkv("sm90", F16, 46, 400)
    assert tuned.temporal_qkv_tile(CPU, F16, 45, 400, 12) == Tile(64, 64, 32, 4, 3)


def test_the_trunk_takes_our_attention_where_that_was_measured(monkeypatch):
    assert not tuned.trunk_in_kernel("sm90", F16, 12, 196)
    row = {"dtype": "float16", "rows": 96, "patches": 196, "best": "kernel"}
    table = {**tuned.table(), "measured": {"sm90": {"trunk_attention": [row]}}}
    monkeypatch.setattr(tuned, "table", lambda: table)
    assert tuned.trunk_in_kernel("sm90", F16, 12, 196)
    assert not tuned.trunk_in_kernel("sm90", F16, 97, 196)
    assert not tuned.trunk_in_kernel("sm90", F16, 12, 49)


@pytest.mark.parametrize(
    ("capability", "family"),
    [((8, 0), "sm80"), ((8, 6), "sm80"), ((8, 9), "sm89"), ((9, 0), "sm90"), ((10, 3), "sm100"),
     ((12, 1), "sm120")],
)  # fmt: skip
def test_families(capability, family, monkeypatch):
    tuned.family.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert tuned.family(torch.device("cuda")) == family
    tuned.family.cache_clear()
