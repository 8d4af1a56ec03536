"""python -m benchmarks.engines: time CPU engines on both graphs, in turn, relative to peak GEMM.

Peak GEMM is the rate of the fastest matrix product of any library, timed between the rounds of the
same run. GFLOP/s count the FLOPs of the reference, also for the fused graph, which needs fewer. The
weights are random, as speed does not depend on them. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import torch

from benchmarks.cpu import time_on_cpu
from benchmarks.record import append_rows
from benchmarks.script import both_graphs, options, random_model
from stan_infer.benchmarking.interleave import Schedule
from stan_infer.network.fold import fold_video
from stan_infer.network.torch_ops import encode_video


def main() -> None:
    """Measure and record."""
    presets = ("stan-b32", "stan-b16", "stan-l14")
    args = options(__doc__, presets=presets, threads=(1, 2), frames=12, repeats=6, warmup=1)
    schedule = Schedule(args.warmup, args.repeats)
    for name in args.presets:
        model = random_model(name)
        weights, compiled = fold_video(model), torch.compile(model.encode_video)
        runs = {
            "eager reference": lambda x, model=model: model.encode_video(x).mean(1),
            "compile reference": lambda x, compiled=compiled: compiled(x).mean(1),
            "eager fused": lambda x, weights=weights: encode_video(weights, x)[0],
        }
        with both_graphs(model, args.frames) as paths:
            folders = {f"{e} {g}": (e, p) for e in ("ort", "openvino") for g, p in paths.items()}
            for n in args.threads:
                sizes = {"threads": n, "frames": args.frames}
                rows = time_on_cpu(model, runs, folders, schedule, **sizes, with_peak=True)
                for row, candidate in zip(rows, [*runs, *folders], strict=True):
                    row |= {"model": name, "graph": candidate.split()[1]}
                path = append_rows("engines", rows)
                print(f"{len(rows)} rows of {name}, {n} threads -> {path.name}", flush=True)


if __name__ == "__main__":
    main()
