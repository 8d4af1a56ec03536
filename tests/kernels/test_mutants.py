"""Faults seeded in the kernels' source, each of which must be seen by a comparison with fp64.

The mutant is the file with one text replaced, imported under another name; the comparisons are the
smallest of those in the other tests.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from stan_infer.kernels.tuned import Tile
from tests.conftest import ROOT, clips
from tests.kernels.inputs import DEVICE, Maker, double, error

LIMIT = 4e-6  # of fp32, as in conftest

# file, what stands there, what the mutant has, the comparison that must see it
FAULTS = [
    ("temporal_attention", "ok = (g < G) & (s < sequences)", "ok = g < G", "packed"),
    ("temporal_attention", "place = s // H", "place = s // T", "packed"),
    ("temporal_attention", "o + 2 * H * DH", "o + H * DH", "packed"),
    ("temporal_attention", "place // patches * T + r % T", "place // patches + r % T", "packed"),
    ("temporal_attention", "scale * LOG2_E", "scale", "packed"),
    ("temporal_qkv_attention", "tl.where(r < G * T, g, G)", "tl.where(r < G * T, 0, G)", "fused"),
    ("temporal_qkv_attention", "g = r % G\n", "g = r // T\n", "fused"),
    ("temporal_qkv_attention", "acc - mean[:, None] * s[None, :]", "acc", "fused"),
    ("temporal_qkv_attention", "m_k = o_k < d - i_k * BK", "m_k = o_k < d + 1", "fused"),
    ("linear", "m_k = o_k < k - i_k * BK", "m_k = o_k < k", "linear"),
    ("linear", "tl.where(m_m[:, None], acc, 0.0) + r", "acc + r", "linear"),
    ("linear", "squares += tl.sum(x32 * x32, 1)", "squares += tl.sum(x32, 1)", "linear"),
    ("spatial_attention", "norm = tl.full((BM,), 1.0,", "norm = tl.full((BM,), 0.0,", "spatial"),
    ("spatial_attention", 'tl.where(m_n[None, :], s, float("-inf"))', "s", "spatial"),
    ("spatial_attention", "norm * fade + tl.sum(e, 1)", "norm + tl.sum(e, 1)", "spatial"),
    ("spatial_attention", "if done == T - 1:", "if done == T:", "spatial"),
    ("spatial_attention", "(mean / T)", "mean", "spatial"),
    ("spatial_attention", "tl.store(p_count + i_bh, 0)", "pass", "spatial"),
    ("cls_attention", 'tl.where(m_p[:, None], s, float("-inf"))', "s", "class"),
    ("cls_attention", "- shift[:, None]", "", "class"),
    ("cls_attention", "acc = z_cls * e_cls", "acc = z_cls", "class"),
    ("branch_merge", "p_x + (pid + i_f) * d", "p_x + pid * d", "merge"),
    ("branch_merge", "own = own / frames\n", "own = own\n", "merge"),
    ("patch_embed", "i_p % side * (3 * PATCH)", "i_p % side * PATCH", "embed"),
    ("patch_embed", "(pid - pid // (patches + 1)) * d", "pid * d", "embed"),
    ("head_rows", "tokens + tokens - 1", "tokens", "head"),
]


def load_mutant(name: str, before: str, after: str, folder):
    """The kernel file with one text replaced, its operations in a namespace of their own."""
    source = (ROOT / "kernels" / f"{name}.py").read_text()
    assert source.count(before) >= 1, (
        f"{name}.py has no {before!r}: the seeded fault is out of date"
    )
    mutant = source.replace(before, after).replace('"stan_infer::', f'"mutant_{folder.name}::')
    mutant = mutant.replace("torch.ops.stan_infer.", f"torch.ops.mutant_{folder.name}.")
    path = folder / f"{name}.py"
    path.write_text(mutant)
    spec = importlib.util.spec_from_file_location(f"mutant_{folder.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def packed(m):
    new, (b, t, p, h) = Maker(torch.float32), (2, 5, 3, 3)
    qkv = new.rows(b * t * p, 144)
    got = m.launch(qkv, t, p, h, 0.3, Tile(64, 64, 0, 4, 1))  # 12 sequences a tile, of 18
    yield got, m.temporal_attention_reference(qkv.double(), t, p, h, 0.3)


def fused(m):
    new, (b, t, p, h) = Maker(torch.float32), (2, 5, 3, 2)
    x, w, bias = new.rows(b * t * p + b, 32), new.rows(96, 32, scale=0.2), new(96)
    x += 1
    w_d, x_d = w.double(), x.double()
    tile = Tile(64, 64, 64, 4, 1)  # deeper than D = 32: the tail of the sum is masked
    args = (b, t, p, h, 0.3, 1e-5)
    got = m.launch(x, w, bias, w_d.sum(1).float(), *args, tile=tile)
    yield got, m.temporal_qkv_attention_reference(x_d, w_d, bias.double(), w_d.sum(1), *args)


def linear(m):
    new = Maker(torch.float32)
    x, w, b, r = new.rows(19, 40), new.rows(24, 40, scale=0.2), new(24), new.rows(22, 24)
    sums = w.double().sum(1).float()
    got = m.launch(x, w, b, sums, r, "silu", 1e-5, False, Tile(16, 16, 16, 4, 1))
    yield got, m.linear_reference(*double(x, w, b, sums, r), "silu", 1e-5, False)


def spatial(m):
    new, (b, t, h) = Maker(torch.float32), (2, 3, 2)
    counters = torch.zeros(b * h, dtype=torch.int32)
    for shared, rows in ((True, b * t * 21 + b), (False, b * t * 22), (True, b * t * 21 + b)):
        qkv = new.rows(rows, 96)
        got = m.launch(qkv, counters, b, t, h, 0.3, shared, Tile(16, 16, 0, 4, 1))
        yield got, m.spatial_attention_reference(qkv.double(), b, t, h, 0.3, shared)


def class_(m):
    new, (b, t, p) = Maker(torch.float32), (2, 3, 21)
    u, x = new(b, 2, 40), new.rows(b * t * p + b, 40)
    x += 2
    got = m.launch(u, x, b, t, 0.3, 1e-5, Tile(16, 0, 16, 4, 1))
    yield got, m.cls_attention_reference(*double(u, x), b, t, 0.3, 1e-5)


def merge(m):
    new, (b, t, p) = Maker(torch.float32), (2, 3, 4)
    args = (new(b * t, p + 1, 40), None, new(p, 40), new(64, 40), new(40), b)
    yield m.launch(*args), m.branch_merge_reference(*double(*args))


def embed(m):
    new, video = Maker(torch.float32), torch.as_tensor(clips(2, 3, 16), device=DEVICE)
    args = (video, new(24, 192, scale=0.001), new(4, 24), new(24), new(24), new(24), 8, 1e-5)
    yield m.launch(*args), m.patch_embed_reference(*double(*args))


def head(m):
    new = Maker(torch.float32)
    args = (new(6, 4, 40), new(2, 40), 1e-5)
    yield m.launch(*args), m.head_rows_reference(*double(*args))


CHECKS = {
    "packed": packed, "fused": fused, "linear": linear, "spatial": spatial, "class": class_,
    "merge": merge, "embed": embed, "head": head,
}  # fmt: skip


def worst(module, check) -> float:
    return max(error(got, wanted) for got, wanted in check(module))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f[0]}: {f[2][:30]}")
def test_seeded_fault_is_seen(fault, tmp_path):
    name, before, after, check = fault
    folder = tmp_path / f"m{abs(hash(fault)) % 10**8}"
    folder.mkdir()
    module = load_mutant(name, before, after, folder)
    try:
        assert worst(module, CHECKS[check]) > LIMIT
    except IndexError:
        pass  # the interpreter itself refused an address outside the tensor


@pytest.mark.parametrize("name", sorted({(f[0], f[3]) for f in FAULTS}), ids=str)
def test_the_same_comparison_passes_without_the_fault(name, tmp_path):
    folder = tmp_path / f"sound_{name[0]}"
    folder.mkdir()
    assert worst(load_mutant(name[0], "\n", "\n", folder), CHECKS[name[1]]) < LIMIT
