"""Faults of TensorRT's versions that users reported for networks like ours, with links.

Each gave wrong outputs without an error. They are shown where they may apply. Whether one does
apply, only `verify` of the plan on its GPU can find out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stan_infer.tensorrt_plans.plan_file import Plan

_ISSUES = "https://github.com/NVIDIA/TensorRT/issues"

# versions: the first and the last that are reported to have the fault.
FAULTS: tuple[dict[str, Any], ...] = (
    {
        "flavor": "tensorrt",
        "versions": ((10, 0, 0), (10, 0, 0)),
        "precisions": ("fp16",),
        "what": "fused attention (gemm_mha_v2) differs from the network; fixed in 10.0.1",
        "link": f"{_ISSUES}/3777",
    },
    {
        "flavor": "tensorrt",
        "versions": ((10, 3), (10, 3)),
        "precisions": ("fp16",),
        "what": "vision transformers give almost the same answer for every input",
        "link": f"{_ISSUES}/4723",
    },
    {
        "flavor": "tensorrt",
        "versions": ((10, 7), (10, 7)),
        "precisions": ("fp32", "fp16", "bf16"),
        "what": "attention is wrong where query and key are scaled apart, as torch exports it",
        "link": f"{_ISSUES}/4333",
    },
    {
        "flavor": "tensorrt",
        "versions": ((10, 0), (10, 16)),
        "precisions": ("fp16", "bf16"),
        "sm": ("sm_120",),
        "what": "fused attention of vision transformers is wrong on this GPU; fp32 is exact",
        "link": f"{_ISSUES}/4837",
    },
)


def known_faults(
    flavor: str, version: Sequence[int], precision: str, sm: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Faults that may apply, as "what" and "link". sm: of the GPUs in question; empty: any GPU."""
    found = []
    for fault in FAULTS:
        low, high = fault["versions"]
        in_range = low <= tuple(version[: len(low)]) and tuple(version[: len(high)]) <= high
        on_gpu = not sm or "sm" not in fault or set(sm) & set(fault["sm"])
        if fault["flavor"] == flavor and in_range and precision in fault["precisions"] and on_gpu:
            found.append({"what": fault["what"], "link": fault["link"]})
    return found


def faults_of(plan: Plan) -> list[dict[str, str]]:
    """Faults that may apply to a plan, as known_faults has them."""
    only_gpu = [plan.built_on] if plan.built_on and plan.hardware == "NONE" else []
    return known_faults(plan.flavor, plan.version, plan.precision, plan.targets or only_gpu)
