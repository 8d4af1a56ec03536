import dataclasses
import json

import pytest
import torch

from benchmarks import aot
from stan_infer.kernels import rule, tuned
from stan_infer.kernels.tuned import Tile, fill

PLAIN = rule.Epilogue()
CPU, F16 = torch.device("cpu"), torch.float16


@pytest.fixture
def h100(monkeypatch):
    """Tiles as on an H100, of which only the numbers are needed."""
    monkeypatch.setattr(tuned, "family", lambda device: "sm90")
    monkeypatch.setattr(tuned, "processors", lambda device: 132)
    monkeypatch.setattr(rule, "in_library", lambda *_: False)  # what was measured is tested here


def test_every_family_has_every_operation():
    operations = set(tuned.table()["tiles"]["cpu"])
    for family in tuned.FAMILIES:
        assert set(tuned.table()["tiles"][family]) == operations
        for operation in operations - {"fp8_linear"}:
            assert tuned.tiles(operation, family)
    assert not tuned.tiles("fp8_linear", "sm80")


SHARED = [("sm80", 163), ("sm86", 99), ("sm89", 99), ("sm90", 227), ("sm100", 227), ("sm120", 99)]


def compiled():
    """Rows of kernels that have a tile, as compiled ahead of time."""
    return [r for r in map(json.loads, aot.PATH.read_text().splitlines()) if r["tile"]]


def test_shared_memory_is_at_most_what_is_expected():
    """The compiler's figure, which it does not compare with what a GPU has, is the smaller one."""
    for row in compiled():
        expected = tuned.shared_bytes(row["operation"], Tile(*row["tile"]))
        assert row["shared_bytes"] <= expected, row


@pytest.mark.parametrize(("sm", "kib"), SHARED)
def test_no_start_value_needs_more_shared_memory_than_the_gpu_has(sm, kib, monkeypatch):
    assert tuned.SHARED_KIB[sm] == kib
    rows = [r for r in compiled() if r["family"] == ("sm80" if sm == "sm86" else sm)]
    for operation in tuned.table()["tiles"]["sm80"]:
        for tile in map(dataclasses.astuple, tuned.tiles(operation, sm)):
            own = [r for r in rows if (r["operation"], tuple(r["tile"])) == (operation, tile)]
            assert own and max(r["shared_bytes"] for r in own) <= kib * 1024
    large = [256, 128, 64, 8, 3]  # 147 KB
    own = {name: {"linear": [large, [64, 64, 32, 4, 4]]} for name in tuned.FAMILIES}
    tuned.tiles.cache_clear()
    monkeypatch.setattr(tuned, "table", lambda: {"tiles": own, "measured": {}})
    monkeypatch.setattr(tuned, "family", lambda device: sm)
    monkeypatch.setattr(tuned, "processors", lambda device: 1)
    try:
        assert (tuned.linear_tile(CPU, F16, 9999, 999, 768).bm == 256) == (kib > 145)
    finally:
        tuned.tiles.cache_clear()


@pytest.mark.parametrize("t", range(1, 65))
def test_every_number_of_frames_has_a_tile(t, h100):
    """The largest tile that keeps two programs per processor; a sequence always fits."""
    tile = tuned.temporal_tile(CPU, F16, t, 196 * 12, 12, 768)
    assert tile.bm >= t
    for tile in tuned.qkv_tiles("sm90", t):
        assert fill(tile.bm, t) >= tuned.MIN_FILL


def test_the_rule_for_few_programs(h100):
    assert tuned.temporal_tile(CPU, F16, 12, 8 * 196 * 12, 12, 768).bm == 64
    assert tuned.temporal_tile(CPU, F16, 12, 49 * 12, 12, 768).bm == 32
    assert tuned.temporal_tile(CPU, F16, 8, 300, 12, 768).bm == 16
    # B/32, one clip of 12 frames: 60 programs of 128 rows would leave half of an H100 idle.
    assert tuned.temporal_qkv_tile(CPU, F16, 12, 49, 12, 768).bm == 64
    assert tuned.temporal_qkv_tile(CPU, F16, 12, 8 * 196, 12, 768).bm == 128
    assert not tuned.qkv_tiles("sm90", 45)
    assert tuned.linear_tile(CPU, F16, 600, 768, 768) == Tile(64, 64, 64, 4, 4)
    assert tuned.linear_tile(CPU, F16, 18912, 768, 768).bm == 128


@pytest.fixture
def measured(monkeypatch):
    """Let the table have these rows of an H100."""

    def use(operation, *rows, sm="sm90"):
        table = {**tuned.table(), "measured": {sm: {operation: list(rows)}}}
        monkeypatch.setattr(tuned, "table", lambda: table)

    return use


ROW = {"dtype": "float16", "rows": 700, "n": 768, "k": 768, "best": [32, 64, 64, 2, 5]}
SIZES = {"dtype": "float16", "rows": 500, "frames": 12, "heads": 12, "width": 768}


def test_what_was_measured_goes_first(h100, measured):
    measured("linear", {**ROW, "rows": 5000, "best": "library"}, ROW)
    assert tuned.linear_tile(CPU, F16, 600, 768, 768) == Tile(32, 64, 64, 2, 5)
    assert not tuned.in_library("sm90", F16, 600, 768, 768, PLAIN)
    assert tuned.in_library("sm90", F16, 701, 768, 768, PLAIN)
    assert not tuned.in_library("sm90", torch.bfloat16, 701, 768, 768, PLAIN)
    for other in ("sm100", "sm89"):
        assert not tuned.in_library(other, F16, 701, 768, 768, PLAIN)


def test_the_last_row_holds_beyond_the_end(h100, measured):
    measured("linear", ROW, {**ROW, "rows": 5000, "best": "library"})
    assert tuned.in_library("sm90", F16, 50_000, 768, 768, PLAIN)


def test_a_row_in_which_the_rule_won_ends_the_rows_before_it(h100, measured):
    """Without it the next larger row would hold for its sizes, too."""
    larger = {**ROW, "rows": 5000, "best": "library"}
    measured("linear", larger, {**ROW, "best": "rule"})
    assert not tuned.in_library("sm90", F16, 600, 768, 768, PLAIN)
    assert tuned.linear_tile(CPU, F16, 600, 768, 768) == Tile(64, 64, 64, 4, 4)
    assert tuned.in_library("sm90", F16, 701, 768, 768, PLAIN)


def test_a_measured_tile_that_does_not_fit_is_not_taken(measured, monkeypatch):
    monkeypatch.setattr(tuned, "processors", lambda device: 132)
    for sm, taken in (("sm86", False), ("sm80", True)):
        monkeypatch.setattr(tuned, "family", lambda device, sm=sm: sm)
        measured("linear", {**ROW, "best": [128, 128, 64, 8, 4]}, sm=sm)  # 128 KB
        tile = tuned.linear_tile(CPU, F16, 600, 768, 768)
        assert (tile == Tile(128, 128, 64, 8, 4)) == taken


def test_attention_that_was_measured(h100, measured):
    row = {**SIZES, "best": "linear"}
    measured("temporal_qkv_attention", row, {**row, "frames": 45, "best": [64, 64, 32, 4, 3]})
    assert not tuned.fuses_qkv("sm90", F16, 12, 400, 12, 768)
    assert not tuned.fuses_qkv("sm90", F16, 12, 501, 12, 768)
    assert tuned.fuses_qkv("sm90", F16, 8, 400, 12, 768)
    assert tuned.fuses_qkv("sm90", F16, 45, 400, 12, 768)
    assert not tuned.fuses_qkv("sm90", F16, 46, 400, 12, 768)
    assert tuned.temporal_qkv_tile(CPU, F16, 45, 400, 12, 768) == Tile(64, 64, 32, 4, 3)


@pytest.mark.parametrize("sizes", [(16, 1024), (12, 1024), (16, 768)])
def test_another_network_takes_no_row_of_this_one(h100, measured, sizes, monkeypatch):
    tile = Tile(16, 64, 0, 2, 1)
    measured("temporal_attention", {**SIZES, "best": list(dataclasses.astuple(tile))})
    assert tuned.temporal_tile(CPU, F16, 12, 400, 12, 768) == tile
    assert tuned.temporal_tile(CPU, F16, 12, 400, *sizes) != tile
    measured("temporal_qkv_attention", {**SIZES, "best": "linear"})
    monkeypatch.setattr(rule, "fuses_qkv", lambda *_: True)
    assert tuned.fuses_qkv("sm90", F16, 12, 400, *sizes)
    assert not tuned.fuses_qkv("sm90", F16, 12, 400, 12, 768)
    measured("trunk_attention", {**SIZES, "patches": 196, "best": "kernel"})
    assert not tuned.trunk_in_kernel("sm90", F16, 12, 196, *sizes)


def test_the_trunk_takes_our_attention_where_that_was_measured(measured):
    assert not tuned.trunk_in_kernel("sm90", F16, 12, 196, 12, 768)
    row = {k: v for k, v in SIZES.items() if k != "frames"} | {"rows": 96, "patches": 196}
    measured("trunk_attention", {**row, "best": "kernel"})
    assert tuned.trunk_in_kernel("sm90", F16, 12, 196, 12, 768)
    assert tuned.trunk_in_kernel("sm90", F16, 97, 196, 12, 768)
    assert not tuned.trunk_in_kernel("sm90", F16, 12, 49, 12, 768)


@pytest.mark.parametrize(
    ("capability", "family", "start"),
    [((8, 0), "sm80", "sm80"), ((8, 6), "sm86", "sm80"), ((8, 9), "sm89", "sm89"),
     ((9, 0), "sm90", "sm90"), ((10, 3), "sm103", "sm100"), ((12, 1), "sm121", "sm120")],
)  # fmt: skip
def test_families(capability, family, start, monkeypatch):
    tuned.family.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert tuned.family(torch.device("cuda")) == family
    assert tuned.tiles("linear", family) == tuned.tiles("linear", start)
    tuned.family.cache_clear()
