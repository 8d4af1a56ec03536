"""python -m benchmarks.plans [--models stan-tiny,stan-b32]: time and memory of building plans.

Exports random weights in every precision and builds the default plans of each graph with TensorRT
for RTX, which needs no GPU. A row has the seconds and the peak memory of the builder's process and
the sizes of graph and plan. Appends rows to benchmarks/results/. The speed of plans is measured on
a GPU by benchmarks.gpu.suite.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import append_rows
from benchmarks.script import options, random_model
from stan_infer.export.export_model import export_model
from stan_infer.tensorrt_plans.build import build_plans
from stan_infer.tensorrt_plans.options import PlanOptions
from stan_infer.tensorrt_plans.plan_file import Plan


def main() -> None:
    """Build and record."""
    args = options(__doc__, models=("stan-tiny", "stan-b32"), precisions=("fp32", "fp16", "bf16"))
    for name in args.models:
        for precision in args.precisions:
            roles = ("video", "text") + (("preprocess",) if precision == "fp32" else ())
            with tempfile.TemporaryDirectory() as above:
                folder = Path(above) / "folder"
                export_model(lambda name=name: random_model(name), folder, precision=precision)
                plans = build_plans(folder, "trt-rtx", PlanOptions(roles=roles))
                rows = [_row(plan, folder) for plan in plans]
            rows = [{"model": name, "precision": precision, **row} for row in rows]
            append_rows("plans", rows)
            for row in rows:
                print(json.dumps(row))


def _row(plan: Plan, folder: Path) -> dict[str, Any]:
    s = plan.sidecar
    return {
        "engine": plan.engine,
        "role": plan.role,
        "tensorrt_rtx": ".".join(map(str, plan.version)),
        "targets": s["targets"],
        "profiles": len(plan.profiles),
        "onnx_mib": (folder / s["onnx"]).stat().st_size / 2**20,
        "plan_mib": s["plan_bytes"] / 2**20,
        "build_s": s["build_seconds"],
        "build_peak_mib": s["build_peak_mib"],
    }


if __name__ == "__main__":
    main()
