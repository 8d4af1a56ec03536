"""python -m benchmarks.plans [--models stan-tiny,stan-b32]: what it takes to build a plan.

Exports random weights in every precision and builds the default plans of each graph with TensorRT
for RTX, which needs no GPU: seconds and peak memory of the builder's process, sizes of both files.
Appends rows to benchmarks/results/. How fast a plan runs, benchmarks.gpu_suite says on a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.record import append_rows
from stan_infer.checkpoints.presets import preset
from stan_infer.export.export_model import export_model
from stan_infer.network.model import Stan, init_random
from stan_infer.tensorrt_plans.build import build_plans
from stan_infer.tensorrt_plans.options import PlanOptions


def main() -> None:
    """Build and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="stan-tiny,stan-b32")
    parser.add_argument("--precisions", default="fp32,fp16,bf16")
    args = parser.parse_args()
    for name in args.models.split(","):
        for precision in args.precisions.split(","):
            model = init_random(Stan(preset(name))).eval()
            roles = ("video", "text") + (("preprocess",) if precision == "fp32" else ())
            with tempfile.TemporaryDirectory() as above:
                folder = Path(above) / "folder"
                export_model(model, folder, precision=precision)
                del model
                rows = []
                for plan in build_plans(folder, "trt-rtx", PlanOptions(roles=roles)):
                    s = plan.sidecar
                    rows.append(
                        {
                            "model": name,
                            "engine": plan.engine,
                            "role": plan.role,
                            "precision": precision,
                            "tensorrt_rtx": ".".join(map(str, plan.version)),
                            "targets": s["targets"],
                            "profiles": len(plan.profiles),
                            "onnx_mib": (folder / s["onnx"]).stat().st_size / 2**20,
                            "plan_mib": s["plan_bytes"] / 2**20,
                            "build_s": s["build_seconds"],
                            "build_peak_mib": s["build_peak_mib"],
                        }
                    )
            append_rows("plans", rows)
            for row in rows:
                print(json.dumps(row))


if __name__ == "__main__":
    main()
