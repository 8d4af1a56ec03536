"""The whole rewritten network on kernels: its numbers."""

import pytest
import torch

from stan_infer.errors import InputError
from stan_infer.network import kernel_ops
from stan_infer.network.fold import fold_text, fold_video
from stan_infer.network.fused import text_tower, video_tower
from stan_infer.network.kernel_ops import KernelOps, encode_branch, encode_trunk
from stan_infer.network.kernel_weights import Fp8Linear, carry_biases, prepare
from stan_infer.network.model import Stan, init_random
from stan_infer.network.torch_ops import TorchOps
from stan_infer.quantisation.observe import activation_scales
from tests.conftest import clips, relative_error, tiny_config
from tests.grids import pairwise
from tests.kernels.inputs import DEVICE

CHOICES = [frozenset(), frozenset({"trunk", "linear"}), frozenset({"library"})]
# Of the largest value: fp16 and bf16 of the reference in torch itself measure 2e-3 and 2e-2.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


@pytest.fixture(autouse=True)
def poisoned():
    """Not here: the library's own operations use torch.empty."""


@pytest.fixture(autouse=True)
def on_device():
    """Not here: models are made on the CPU, as those of users."""


def tiny(**changes) -> Stan:
    return init_random(Stan(tiny_config(**changes)), seed=2).eval().requires_grad_(False)


def run(model, b, t, kernels=frozenset(), dtype=torch.float32, scales=None):
    weights = prepare(fold_video(model, dtype=dtype, base2=True), DEVICE, scales)
    counters = torch.zeros(b * model.config.heads, dtype=torch.int32, device=DEVICE)
    ops = KernelOps(b, t, counters, kernels=kernels)
    mean, frames = video_tower(ops, weights, torch.from_numpy(clips(b, t, 16)).to(DEVICE))
    assert mean.dtype == frames.dtype == torch.float32 and not counters.any()
    return mean.cpu(), frames.cpu()


def check(model, b, t, kernels=frozenset(), dtype=torch.float32):
    mean, frames = run(model, b, t, kernels, dtype)
    wanted = model.encode_video(torch.from_numpy(clips(b, t, 16)))
    assert relative_error(frames, wanted) < TOLERANCE[dtype]
    assert relative_error(mean, wanted.mean(1)) < TOLERANCE[dtype]


@pairwise(
    changes=[{}, {"branch": "conv"}, {"activation": "gelu"}, {"branch_layers": 3}],
    kernels=CHOICES,
    b_t=[(1, 1), (2, 3)],
)
def test_equals_the_reference(changes, kernels, b_t):
    check(tiny(**changes), *b_t, kernels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    check(tiny(), 2, 5, dtype=dtype)


@pairwise(
    changes=[{}, {"branch": "conv"}, {"branch_layers": 3}],
    kernels=CHOICES,
    form=[(1, torch.float32), (3, torch.float32), (4, torch.float16), (3, torch.bfloat16)],
)
def test_its_two_parts_are_the_whole(changes, kernels, form):
    """Frames pass the trunk in groups, windows start anywhere, and counters were left behind."""
    window, dtype = form
    model, video = tiny(**changes), torch.from_numpy(clips(1, window + 4, 16)[0]).to(DEVICE)
    weights = prepare(fold_video(model, dtype=dtype, base2=True), DEVICE)
    counters = torch.full((2 * model.config.heads,), 7, dtype=torch.int32, device=DEVICE)
    groups = [
        encode_trunk(KernelOps(1, len(part), counters, kernels=kernels), weights, part)
        for part in video.split([1, 2, window + 1])
    ]
    assert all(x.dtype == dtype for rows in groups for x in rows)
    rows = [torch.cat(parts) for parts in zip(*groups, strict=True)]
    held = [x.clone() for x in rows]
    starts = [0, 3]
    counters += 7
    found = encode_branch(
        KernelOps(len(starts), window, counters, kernels=kernels),
        weights,
        [torch.stack([x[i : i + window] for i in starts]) for x in rows],
    )
    whole = video_tower(
        KernelOps(len(starts), window, counters, kernels=kernels),
        weights,
        torch.stack([video[i : i + window] for i in starts]),
    )
    limit = 2e-6 if dtype == torch.float32 else TOLERANCE[dtype]
    for got, wanted in zip(found, whole, strict=True):
        assert relative_error(got.cpu(), wanted.cpu()) < limit
    assert all(map(torch.equal, rows, held)) and not counters.any()


def test_its_two_parts_in_8_bits():
    model, video = tiny(), torch.from_numpy(clips(1, 4, 16))
    folded = fold_video(model, base2=True)
    weights = prepare(folded, DEVICE, activation_scales(folded, video), torch.bfloat16)
    counters = torch.zeros(model.config.heads, dtype=torch.int32, device=DEVICE)
    rows = encode_trunk(KernelOps(1, 4, counters), weights, video[0].to(DEVICE))
    found = encode_branch(KernelOps(1, 4, counters), weights, [x[None] for x in rows])
    whole = video_tower(KernelOps(1, 4, counters), weights, video.to(DEVICE))
    for got, wanted in zip(found, whole, strict=True):
        assert relative_error(got.cpu(), wanted.cpu()) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("changes", [{}, {"branch_layers": 3}], ids=str)
def test_rows_of_the_trunk_are_not_overwritten(changes):
    """In the library a layer adds to its stream in place, unless the rows are kept."""
    weights = prepare(fold_video(tiny(**changes), base2=True), DEVICE)
    video = torch.from_numpy(clips(1, 3, 16)[0]).to(DEVICE)
    counters = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    both = [
        encode_trunk(KernelOps(1, 3, counters, kernels=kernels), weights, video)
        for kernels in (frozenset(), frozenset({"library"}))
    ]
    assert len({x.data_ptr() for x in both[1]}) == len(both[1])
    for ours, library in zip(*both, strict=True):
        assert relative_error(library.cpu(), ours.cpu()) < 1e-5


def test_text_tower(tiny_model):
    weights = prepare(fold_text(tiny_model, base2=True), "cpu")
    ids = torch.randint(1, 126, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 5] = 127
    ops = KernelOps(3, 1, torch.zeros(0, dtype=torch.int32))
    end, tokens = text_tower(ops, weights, ids)
    assert relative_error(tokens, tiny_model.encode_text_tokens(ids)) < 1e-5
    assert relative_error(end, tiny_model.encode_text(ids)) < 1e-5


@pytest.mark.parametrize("kernels", [frozenset(), frozenset({"library"})], ids=str)
def test_fp8(kernels):
    model, video = tiny(), torch.from_numpy(clips(2, 5, 16))
    folded = fold_video(model, base2=True)
    scales = activation_scales(folded, video)
    assert len(scales) == 4 * 3 + 2 * 2 + 2 * 4
    weights = prepare(folded, "cpu", scales)
    assert isinstance(weights.trunk[0].fc1, Fp8Linear)
    assert isinstance(weights.branch[0].temporal.qkv, Fp8Linear)
    assert weights.trunk[0].fc1.y_scale == weights.trunk[0].fc2.x_scale
    assert weights.trunk[0].qkv.attention_scale == weights.trunk[0].out.x_scale
    assert weights.branch[0].temporal.qkv.attention_scale == weights.branch[0].temporal.out.x_scale
    _, frames = run(model, 2, 5, kernels, scales=scales)
    wanted = model.encode_video(video).double()
    cosine = torch.cosine_similarity(frames.double(), wanted, dim=-1)
    assert cosine.min() > 0.995  # 3 bits of fraction in every linear of a tiny network
    assert relative_error(frames, wanted) > 1e-3  # and they were really used


@pytest.mark.parametrize("part", ["out", "qkv"])
def test_fp8_in_some_linears(part):
    """Attention rounds for a linear in 8 bits, whatever made its q, k and v, and for no other."""
    model, video = tiny(), torch.from_numpy(clips(2, 3, 16))
    folded = fold_video(model, base2=True)
    scales = {p: s for p, s in activation_scales(folded, video).items() if p.endswith(f"/{part}")}
    weights = prepare(folded, "cpu", scales)
    assert (weights.trunk[0].qkv.attention_scale is not None) == (part == "out")
    _, frames = run(model, 2, 3, frozenset({"trunk"}), scales=scales)
    wanted = model.encode_video(video)
    assert 1e-3 < relative_error(frames, wanted) < 0.1


def test_nothing_is_rounded_to_8_bits_twice(monkeypatch):
    """By our kernels alone each row is rounded where it is made: no pass does only that."""
    calls = []
    monkeypatch.setattr(kernel_ops, "quantise_rows", lambda *args: calls.append(args))
    model = tiny()
    folded = fold_video(model, base2=True)
    scales = activation_scales(folded, torch.from_numpy(clips(1, 2, 16)))
    del scales[folded.branch[-1].spatial.out.path]  # it reads what a product of torch's has written
    run(model, 1, 2, frozenset({"trunk"}), scales=scales)
    assert not calls


def test_scales_for_another_model_are_refused():
    with pytest.raises(InputError, match="trunk/layer9"):
        prepare(fold_video(tiny()), "cpu", {"video/trunk/layer9/mlp/fc1": 1.0})


class Carried(TorchOps):
    """Plain torch, but a linear that is added to a stream leaves its bias to the readers."""

    def __init__(self, carried, batch, frames):
        super().__init__(batch, frames)
        self.carried, self.left = carried, {}

    def linear(self, x, w, *, activation=None, residual=None):
        _, after = self.carried.get(w.path, (None, None))
        if after is None or residual is None:
            return super().linear(x, w, activation=activation, residual=residual)
        y = x @ w.weight.T + residual
        self.left[id(y)] = (y, after)  # the value is held, so that no other gets its id
        return y

    def norm_linear(self, x, w, tower, *, activation=None, residual=None):
        c, _ = self.carried.get(w.path, (None, None))
        x = x if c is None else x + c
        return super().norm_linear(x, w, tower, activation=activation, residual=residual)

    def split(self, name, rows):
        patches, cls = super().split(name, rows)
        self.left[id(patches)] = (patches, self.left[id(rows)][1])
        self.left[id(cls)] = (cls, self.left[id(rows)][1])
        return patches, cls

    def whole(self, x):
        return x + self.left[id(x)][1] if id(x) in self.left else x

    def start(self, trunk, w):
        return super().start(self.whole(trunk), w)

    def merge(self, name, patches, cls, trunk):
        return super().merge(name, *map(self.whole, (patches, cls, trunk)))

    def head(self, trunk, cls, w, tower):
        return super().head(trunk + self.carried[w.path][0], cls, w, tower)

    def text_head(self, x, ids, w, tower):
        return super().text_head(x + self.carried[w.path][0], ids, w, tower)


def test_biases_carried_by_the_stream_are_exact():
    """In fp64 on both towers: what the readers add is what the linears left out."""
    model = tiny(branch_layers=3).double()
    video, ids = torch.from_numpy(clips(2, 3, 16)), torch.tensor([[3, 9, 127, 0], [5, 127, 1, 2]])
    for folded, tower, given, shape in (
        (fold_video(model), video_tower, video, (2, 3)),
        (fold_text(model), text_tower, ids, (2, 1)),
    ):
        carried = carry_biases(folded)
        assert sum(after is not None for _, after in carried.values()) >= 4
        wanted = tower(TorchOps(*shape), folded, given)
        for got, exact in zip(tower(Carried(carried, *shape), folded, given), wanted, strict=True):
            assert relative_error(got, exact) < 1e-13


def test_rows_that_the_branch_reads_are_not_overwritten():
    """The library adds to a stream in place; the branch runs beside the trunk's next layer."""
    model, seen = tiny(branch_layers=3), []

    class Watched(KernelOps):
        def start(self, trunk, w):
            seen.append((trunk.x, trunk.x.clone()))
            return super().start(trunk, w)

        def merge(self, name, patches, cls, trunk):
            seen.append((trunk.x, trunk.x.clone()))
            return super().merge(name, patches, cls, trunk)

    weights = prepare(fold_video(model, base2=True), DEVICE)
    counters = torch.zeros(2 * model.config.heads, dtype=torch.int32, device=DEVICE)
    ops = Watched(2, 3, counters, kernels=frozenset({"library"}))
    video_tower(ops, weights, torch.from_numpy(clips(2, 3, 16)).to(DEVICE))
    assert len(seen) == 3
    for now, then in seen:
        assert torch.equal(now, then)
