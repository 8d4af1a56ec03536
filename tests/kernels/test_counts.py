"""The rewritten network on kernels, counted without running: launches, bytes, operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.launches import GPUS, count_launches, predict
from stan_infer.checkpoints.presets import preset
from stan_infer.kernels import rule
from stan_infer.network.fold import fold_video
from stan_infer.network.model import Stan
from stan_infer.network.torch_ops import encode_video

# Megabytes of the graph "fused" at B = 1 and B = 8, T = 12, as counted on paper (roofline): every
# kernel's operands and results once. "best", with no byte to spare, is 584, 10,700 and 32,300.
FUSED_MB = {("stan-b32", 1): 668, ("stan-b16", 8): 13_400, ("stan-l14", 8): 39_400}


@pytest.fixture(autouse=True)
def poisoned():
    """Not here: nothing runs."""


@pytest.fixture(autouse=True)
def on_device():
    """Not here: counting has devices of its own."""


OURS = frozenset({"trunk"})  # on every family each linear in our kernel, as for the interpreter


@pytest.mark.parametrize("name", ["stan-b16", "stan-b32"])
def test_launches_of_our_kernels_alone(name):
    """The reference launches 312 kernels or more. The sums for norms cost none: whoever writes a
    row writes its sums. One more zeroes the counters."""
    ours = count_launches(name, batch=1, frames=12, kernels=OURS, family="cpu")
    assert ours.total == 100
    assert ours.by_operation["stan_infer::temporal_qkv_attention"] == 4
    others = {o for o in ours.by_operation if o.startswith("aten::")}
    assert others == {"aten::bmm", "aten::zero_"}
    # Torch's own attention, and a copy after it where its output is not laid out for us.
    assert count_launches(name, batch=1, frames=12, family="cpu").total <= 100 + 12


@pytest.mark.parametrize(
    ("name", "most"), [("stan-b32", 132), ("stan-b16", 132), ("stan-l14", 216)]
)
@pytest.mark.parametrize("family", rule.GPUS)
@pytest.mark.parametrize("batch", [1, 8])
def test_launches_by_the_rule(batch, family, name, most):
    """With the library where the rule takes it: its norms are kernels of their own."""
    ours = count_launches(name, batch=batch, frames=12, kernels=OURS, family=family)
    assert ours.total <= most, ours.by_operation
    # Nothing is copied, added or laid out by a kernel of its own.
    others = {o.removeprefix("aten::") for o in ours.by_operation if o.startswith("aten::")}
    assert others <= {"zero_", "linear", "addmm", "addmm_", "bmm", "silu_"}


def test_most_launches_of_a_layer_are_what_the_rule_allows(monkeypatch):
    """Without its limit the fastest plans of sm_100 launch more than a network may."""
    monkeypatch.setattr(rule, "MORE", len(rule.LAYER))
    rule.layer_in_library.cache_clear()
    try:
        found = count_launches("stan-b16", batch=8, frames=12, kernels=OURS, family="sm100")
    finally:
        rule.layer_in_library.cache_clear()
    assert found.total > 132


@pytest.mark.parametrize(("name", "batch"), FUSED_MB)
def test_bytes(name, batch):
    ours = count_launches(name, batch=batch, frames=12, kernels=OURS, family="cpu")
    assert 0.8 * FUSED_MB[name, batch] < ours.bytes_moved / 1e6 < FUSED_MB[name, batch]


def test_flops_are_those_of_the_rewritten_network():
    """Counted by torch; the kernels count what is useful, and the head makes its means by rows."""
    with torch.device("meta"):
        model = Stan(preset("stan-b16")).eval().requires_grad_(False)
        weights = fold_video(model)
        video = torch.empty(2, 12, 224, 224, 3, dtype=torch.uint8)
        with FlopCounterMode(display=False) as plain:
            encode_video(weights, video)
    counted = count_launches("stan-b16", batch=2, frames=12).flops
    assert counted == pytest.approx(plain.get_total_flops(), rel=2e-3)


@pytest.mark.parametrize("family", list(GPUS))
def test_predictions(family):
    """The same FLOPs whatever runs them; no prediction is below a floor; all parts are counted."""
    found = count_launches("stan-b16", batch=8, frames=12, kernels=OURS, family=family)
    ours = count_launches("stan-b16", batch=8, frames=12, kernels=OURS, family="cpu")
    assert found.flops == pytest.approx(ours.flops, rel=1e-6)
    ms = predict(found, family, 12)
    floors = [ms[k] for k in ("memory_ms", "tensor_ms", "issue_ms")]
    assert min(floors) > 0 and ms["predicted_ms"] > max(floors)
    assert ms["predicted_ms"] < 2.5 * sum(floors)
