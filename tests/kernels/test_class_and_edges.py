"""The kernels at the edges of the network: pixels in, branch start and merge, last layer, head."""

import pytest
import torch

from stan_infer.kernels import branch_merge, cls_attention, head_rows, patch_embed, row_norm
from stan_infer.kernels.tuned import Tile
from tests.conftest import clips
from tests.grids import once
from tests.kernels.inputs import DEVICE, DTYPES, FRAMES, TOLERANCE, Maker, double, error


def check_class(dtype, b, t, p, heads, d, tile=None, mean=0.0, size=1.0):
    new = Maker(dtype)
    x = new.rows(b * t * p + b, d)
    x += mean
    u = new(heads, b, d, scale=size).transpose(0, 1)  # as a product per head leaves it
    got = cls_attention.launch(u, x, b, t, 0.2, 1e-5, tile)
    wanted = cls_attention.cls_attention_reference(*double(u, x), b, t, 0.2, 1e-5)
    assert error(got, wanted) < TOLERANCE[dtype]


@once(dtype=DTYPES, t=FRAMES, b=[1, 3])
def test_class_attention(dtype, t, b):
    check_class(dtype, b, t, 3, 2, 16)


@pytest.mark.parametrize("p", [1, 63, 64, 65, 196])
def test_class_attention_over_slices(p):
    check_class(torch.float32, 2, 2, p, 3, 40, mean=1.0)


@pytest.mark.parametrize("heads", [1, 12, 16])
def test_class_attention_heads(heads):
    check_class(torch.float32, 2, 3, 4, heads, 48, Tile(16, 0, 16, 4, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_class_attention_large_scores(dtype):
    check_class(dtype, 1, 3, 5, 2, 32, size=20.0)


def test_class_attention_refuses():
    with pytest.raises(ValueError, match="at most 16"):
        cls_attention.launch(torch.zeros(1, 17, 32), torch.zeros(5, 32), 1, 2, 1.0, 1e-5)
    with pytest.raises(ValueError, match=r"need \[F P \+ B, D\]"):
        cls_attention.launch(torch.zeros(1, 2, 32), torch.zeros(6, 32), 1, 2, 1.0, 1e-5)


def both(file, args, dtype):
    """Rows and their sums against fp64, the sums of what was stored."""
    name = file.__name__.split(".")[-1]
    wanted, _ = getattr(file, f"{name}_reference")(*double(*args))
    got, sums = file.launch(*args)
    assert error(got, wanted) < TOLERANCE[dtype]
    assert error(sums, row_norm.row_sums_reference(got.double().flatten(0, -2), None)) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 40, 64, 65, 200])
@pytest.mark.parametrize("apart", [False, True])
def test_row_sums_and_norm(dtype, d, apart):
    x = Maker(dtype).rows(5, d) + 2
    c = Maker(torch.float32, 7)(d) if apart else None
    wanted = row_norm.row_sums_reference(*double(x, c))
    assert error(row_norm.launch_sums(x, c), wanted) < 1e-6
    wanted = row_norm.row_norm_reference(*double(x, c), 1e-5, None)
    if d > 1:
        assert error(row_norm.launch(x, c, 1e-5, None), wanted) < TOLERANCE[dtype]
    with pytest.raises(ValueError, match=rf"need float32 \[{d}\]"):
        row_norm.launch(x, torch.zeros(d + 1), 1e-5, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "t", "side", "patch"), [(1, 1, 16, 8), (2, 3, 28, 14), (3, 2, 8, 8)])
def test_patch_embed(dtype, b, t, side, patch):
    new, d, k = Maker(dtype), 24, 3 * patch**2
    patches = (side // patch) ** 2
    video = torch.as_tensor(clips(b, t, side), device=DEVICE)
    weight = torch.nn.functional.pad(new(d, k, scale=1 / (10 * k)), (0, -k % 64))
    args = (video, weight, new(patches, d), new(d), new(d), new(d), patch, 1e-5)
    both(patch_embed, args, dtype)


def test_patch_embed_refuses():
    video, ones = torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8), torch.ones(8)
    weight, table = torch.zeros(8, 192), torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"uint8 \[B, T, S, S, 3\]"):
        patch_embed.launch(video.float(), weight, table, ones, ones, ones, 8, 1e-5)
    with pytest.raises(ValueError, match="need 192 or more"):
        patch_embed.launch(video, weight[:, :100], table, ones, ones, ones, 8, 1e-5)
    with pytest.raises(ValueError, match=r"need \[4, 8\]"):
        patch_embed.launch(video, weight, table[:3], ones, ones, ones, 8, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "t", "p"), [(1, 1, 1), (2, 5, 3), (3, 2, 4)])
def test_branch_start_and_merge(dtype, b, t, p):
    new, d = Maker(dtype), 40
    trunk, rows = new(b * t, p + 1, d), new.rows(b * t * p + b, d)
    tables = (new(p, d), new(64, d), new(d))
    c, own = Maker(torch.float32, 7)(2, d)
    for apart in ((None, None), (c, None), (None, own), (c, own)):
        both(branch_merge, (trunk, rows, None, None, None, *apart, b), dtype)
        both(branch_merge, (trunk, None, *tables, apart[0], None, b), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "t"), [(1, 1), (2, 5), (3, 12), (1, 33), (2, 64)])
def test_head_rows(dtype, b, t):
    new = Maker(dtype)
    for offset in (None, Maker(torch.float32, 7)(40)):
        args = (new(b * t, 4, 40), new.rows(b, 40), offset, 1e-5)
        wanted = head_rows.head_rows_reference(*double(*args))
        assert error(head_rows.launch(*args), wanted) < TOLERANCE[dtype]


def test_edges_refuse():
    with pytest.raises(ValueError, match="need contiguous"):
        branch_merge.launch(torch.zeros(3, 2, 8), *[None] * 6, 2)
    with pytest.raises(ValueError, match="needs positions, time and cls"):
        branch_merge.launch(torch.zeros(4, 2, 8), *[None] * 6, 2)
    with pytest.raises(ValueError, match="2 class tokens for 3 frames"):
        head_rows.launch(torch.zeros(3, 2, 8), torch.zeros(2, 8), None, 1e-5)


def calls():
    """See test_linear."""
    new, (b, t, p, h, d) = Maker(torch.float32), (2, 3, 4, 2, 32)
    rows, x, trunk = b * t * p, new(b * t * p + b, d), new(b * t, p + 1, d)
    args = (new(b, h, d), x, b, t, 0.3, 1e-5)
    yield cls_attention.cls_attention, args, 4 * h * len(x) * d
    video = torch.from_numpy(clips(b, t, 16)).to(DEVICE)
    args = (video, new(d, 192), new(p, d), new(d), new(d), new(d), 8, 1e-5)
    yield patch_embed.patch_embed, args, 2 * rows * 192 * d
    tables = (new(p, d), new(64, d), new(d))
    c = new(d)
    for args in ((trunk, x, None, None, None, c, c, b), (trunk, None, *tables, None, None, b)):
        yield branch_merge.branch_merge, args, 0
    yield head_rows.head_rows, (trunk, new(b, d), c, 1e-5), 0
    yield row_norm.row_sums, (x, None), 0
    yield row_norm.row_norm, (x, c, 1e-5, None), 0


def tiny_cls_attention(m):
    new, (b, t, p) = Maker(torch.float32), (2, 3, 21)
    u, x = new(b, 2, 136), new.rows(b * t * p + b, 136)  # two tiles of columns
    x += 2
    got = m.launch(u, x, b, t, 0.3, 1e-5, Tile(16, 0, 16, 4, 1))
    yield got, m.cls_attention_reference(*double(u, x), b, t, 0.3, 1e-5)


def tiny_branch_merge(m):
    new, (b, t, p) = Maker(torch.float32), (2, 3, 4)
    trunk, rows, c, own = new(b * t, p + 1, 80), new.rows(b * t * p + b, 80), new(80), new(80)
    tables = (new(p, 80), new(64, 80), new(80))
    for args in ((trunk, None, *tables, c, None, b), (trunk, rows, None, None, None, c, own, b)):
        yield from zip(m.launch(*args), m.branch_merge_reference(*double(*args)), strict=True)


def tiny_patch_embed(m):
    new, video = Maker(torch.float32), torch.as_tensor(clips(2, 3, 16), device=DEVICE)
    args = (video, new(24, 192, scale=0.001), new(4, 24), new(24), new(24), new(24), 8, 1e-5)
    yield from zip(m.launch(*args), m.patch_embed_reference(*double(*args)), strict=True)


def tiny_head_rows(m):
    new = Maker(torch.float32)
    args = (new(36, 4, 40), new(2, 40), new(40), 1e-5)  # 18 frames are two steps of 16
    yield m.launch(*args), m.head_rows_reference(*double(*args))


def tiny_row_norm(m):
    new = Maker(torch.float32)
    x, c = new.rows(5, 80) + 1, new(80)
    yield m.launch_sums(x, c), m.row_sums_reference(*double(x, c))
    yield m.launch(x, c, 1e-5, None), m.row_norm_reference(*double(x, c), 1e-5, None)


# See test_mutants.
FAULTS = {
    "cls_attention": [
        ('tl.where(m_p[:, None], s, float("-inf"))', "s"),
        ("- shift[:, None]", ""),
        ("(z_cls * e_cls + tl.sum", "(z_cls + tl.sum"),
        ("o_n = pid % columns * BN", "o_n = 0 * BN"),
        ("tl.load(p_norm + at, m_s, other=0.0) * fade", "tl.load(p_norm + at, m_s, other=0.0)"),
    ],
    "branch_merge": [
        ("p_x + (pid + i_f) * d", "p_x + pid * d"),
        ("y = y / frames + c\n", "y = y + c\n"),
        ("y = y / frames + c\n", "y = (y + c) / frames\n"),
        ("c += tl.load(p_rc", "c = tl.load(p_rc"),
        ("parts_of_row(stored.to(tl.float32)", "parts_of_row(c"),
    ],
    "patch_embed": [
        ("i_p % side * (3 * PATCH)", "i_p % side * PATCH"),
        ("(pid - pid // (patches + 1)) * d", "pid * d"),
    ],
    "head_rows": [
        ("tokens + tokens - 1", "tokens"),
        ("add += tl.load(p_c", "add -= tl.load(p_c"),
        ("tl.where(m, z, 0.0)", "z"),
        ("i_t = first + tl.arange", "i_t = tl.arange"),
    ],
    "row_norm": [
        ("x += tl.load(p_c", "x -= tl.load(p_c"),
        ("x = tl.where(m_d, x - tl.sum(x) / d, 0.0)", "x = x - tl.sum(x) / d"),
        ("p_y + pid * 2 * PARTS", "p_y + pid * PARTS"),
    ],
}
