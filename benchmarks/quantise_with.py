"""python -m benchmarks.quantise_with TOOL FOLDER VIDEOS OUT: one tool quantises one exported graph.

TOOL: a key of TOOLS. FOLDER: exported in fp32. VIDEOS: the clips to calibrate with, all of them,
decoded in the same way for every tool. OUT: a folder that is not there yet; its video.onnx is the
result. Prints the peak memory of this process in MiB. A process of its own, so that memory and time
are those of one tool, imports included.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from stan_infer.artefacts.folder import Artefact, read_artefact
from stan_infer.system.machine import peak_mib
from stan_infer.video.clip import Clip
from stan_infer.video.decode_pool import early_clips, read_clips
from stan_infer.video.decode_worker import early_workers
from stan_infer.video.spec import ClipSpec

GRAPH = "video.onnx"
# As eight_bits.LINEARS, which would import torch into another tool's process.
_LINEARS = ("qkv", "q", "out", "single", "fc1", "fc2")


def main() -> None:
    """Run the tool that the arguments name."""
    tool, *places = sys.argv[1:]
    folder, videos, out = map(Path, places)
    TOOLS[tool](folder, videos, out)
    print(json.dumps(peak_mib()))


def _feeds(folder: Path, videos: Path) -> Iterator[dict[str, np.ndarray]]:
    """The clips as inputs of the graph, one at a time."""
    spec = ClipSpec.of(read_artefact(folder).config)
    for _, result in read_clips(sorted(videos.iterdir()), spec):
        if not isinstance(result, Clip):
            raise result
        yield {"video": result.pixels[None]}


def _stan_infer(proved: bool) -> Callable[[Path, Path, Path], None]:
    """See _ours; as `calibrate`, it begins to decode at once, and ends without a search for
    garbage."""

    def run(folder: Path, videos: Path, out: Path) -> None:
        atexit.register(gc.freeze)
        chosen = sorted(videos.iterdir())
        with early_workers(None, len(chosen)):
            artefact = read_artefact(folder)
            with early_clips(chosen, ClipSpec.of(artefact.config)):
                _ours(artefact, chosen, out, proved)

    return run


def _ours(artefact: Artefact, chosen: list[Path], out: Path, proved: bool) -> None:
    """What `stan-infer calibrate` does for its graph, without the checks around it.

    Those are the bound on other clips, the error of each linear alone, and the verdict's timing,
    which no other tool has. proved: with the comparison of the graph with the same 8 bits in torch,
    after which it is a folder that runs; nothing else needs torch.
    """
    from stan_infer.export.read_weights import read_weights
    from stan_infer.export.to_quantised import write_files, write_quantised
    from stan_infer.network.eight_bits import NUMBER_FORMATS
    from stan_infer.quantisation import ranges, smooth
    from stan_infer.quantisation.options import CalibrationOptions
    from stan_infer.quantisation.state import Known, State
    from stan_infer.quantisation.watched import samples_of

    weights, config = read_weights(artefact), artefact.config
    options = CalibrationOptions(samples=len(chosen))
    first = list(read_clips(chosen[: smooth.SMOOTHED_ON], ClipSpec.of(config)))
    clips = ((p, r.pixels[None]) for p, r in first)
    seen = samples_of(weights, config, clips)
    smoothing = smooth.choose(weights, seen.inputs, options.precision)
    largest = smooth.largest_inputs(weights, seen.inputs, smoothing)
    exact = smooth.through_values(weights, smoothing)
    state = State(out.with_suffix(".npz"), {}, Known(seen.paths, largest))
    collected = ranges.collect_ranges(
        smooth.with_gains(exact, smoothing.gains),
        config,
        chosen,
        root=chosen[0].parent,
        state=state,
        options=options,
    )
    largest = NUMBER_FORMATS[options.precision].largest
    scales = {n: h.largest / largest for n, h in collected.ranges.items() if h.largest}
    quantiser = smooth.Quantiser(exact, smoothing.gains, scales, [], options.precision)
    out.mkdir()
    record = {"method": options.method, "kept": []}
    write = write_quantised if proved else write_files
    write(artefact, out, quantiser.weights(frozenset()), options.precision, record)


def _quantize_static(method: str, only_linears: bool = False) -> Callable[[Path, Path, Path], None]:
    def run(folder: Path, videos: Path, out: Path) -> None:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            quantize_static,
        )

        feeds = _feeds(folder, videos)

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(feeds, None)

        more = _only_linears(folder / GRAPH) if only_linears else {}
        out.mkdir()
        quantize_static(
            str(folder / GRAPH),
            str(out / GRAPH),
            Reader(),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            calibrate_method=getattr(CalibrationMethod, method),
            **more,
        )

    return run


def _only_linears(path: Path) -> dict[str, object]:
    """The most accurate use of quantize_static that we know: our own placement of the nodes."""
    import onnx

    # A product of the last layer's attention has a weight too; with it in 8 bits ONNX Runtime 1.32
    # fails while it runs the file.
    nodes = [n.name for n in onnx.load(str(path)).graph.node if n.op_type == "MatMul"]
    linears = [name for name in nodes if name.split("/")[-2] in _LINEARS]
    return {
        "nodes_to_quantize": linears,
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    }


def _nncf(**options: str) -> Callable[[Path, Path, Path], None]:
    def run(folder: Path, videos: Path, out: Path) -> None:
        import nncf
        import onnx

        feeds = list(_feeds(folder, videos))
        kind = {k: nncf.ModelType(v) for k, v in options.items()}
        model = onnx.load(str(folder / GRAPH))
        found = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds), **kind)
        out.mkdir()
        onnx.save(found, str(out / GRAPH))

    return run


OURS = "stan-infer, to the graph"
PROVED = "stan-infer, to the folder"  # with the graph's proof, and so with torch
WHOLE = "stan-infer calibrate"  # a command, which benchmarks.quantisers runs
TOOLS: dict[str, Callable[[Path, Path, Path], None]] = {
    OURS: _stan_infer(proved=False),
    PROVED: _stan_infer(proved=True),
    "quantize_static, MinMax": _quantize_static("MinMax"),
    "quantize_static, MinMax, our nodes": _quantize_static("MinMax", only_linears=True),
    "quantize_static, Percentile": _quantize_static("Percentile"),
    "quantize_static, Entropy": _quantize_static("Entropy"),
    "NNCF, default": _nncf(),
    "NNCF, transformer": _nncf(model_type="transformer"),
}


if __name__ == "__main__":
    main()
