"""Writing an exported folder with its video graph in 8 bits, checked against the same in torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.calibration_file import CALIBRATION
from stan_infer.artefacts.difference import relative_error
from stan_infer.artefacts.folder import Artefact, Graph, sha256, write_manifest
from stan_infer.artefacts.npz_file import Field, read_npz
from stan_infer.config import StanConfig
from stan_infer.engines.open import open_graph
from stan_infer.errors import InputError
from stan_infer.export.parity import case_sizes, check_graph, note_config, prove
from stan_infer.export.read_weights import read_classes
from stan_infer.export.video_graph import write_video_graph
from stan_infer.network.cpu_threads import side_by_side
from stan_infer.network.eight_bits import QuantisedLinear
from stan_infer.network.folded import VideoWeights, linears


def write_quantised(
    artefact: Artefact,
    folder: Path,
    weights: VideoWeights,
    precision: str,
    calibration: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a folder like `artefact`, with a video graph of the quantised `weights`, to `folder`.

    folder: empty. precision: int8 or fp8. calibration: content of calibration.json. extra: content
    of other files, by name. All other files are copied. The tolerances of the golden data, which
    are the fp32 model's outputs, are raised to what 8 bits cost there. Raises CheckError if the
    graph's outputs differ from those of the same weights in torch.
    """
    manifest = write_files(artefact, folder, weights, precision, calibration, extra)
    graph = artefact.graph("video")
    assert graph is not None
    parity = _prove(folder / graph.file, artefact.config, graph, weights, precision)
    manifest["parity"] = [p for p in manifest["parity"] if p["file"] != graph.file] + [parity]
    if manifest.get("golden"):
        _measure_golden(folder / graph.file, manifest["golden"], artefact)
    write_manifest(folder, manifest)


def write_files(
    artefact: Artefact,
    folder: Path,
    weights: VideoWeights,
    precision: str,
    calibration: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Write all files but the manifest, and return that, without torch; see write_quantised.

    The manifest lacks what write_quantised finds out: the parity of the graph, and tolerances.
    """
    graph = artefact.graph("video")
    assert graph is not None
    manifest: dict[str, Any] = json.loads(json.dumps(artefact.manifest))
    del manifest["files"]  # the schema stays: it says what all graphs of the folder note
    entry = next(g for g in manifest["graphs"] if g["file"] == graph.file)
    _copy_others(artefact, graph, folder)
    path = folder / graph.file
    external = write_video_graph(
        path,
        artefact.config,
        weights,
        dims=graph.dims,
        input=_input(graph),
        precision="fp32",
        opset=graph.opset,
        classes=read_classes(artefact),
    )
    note_config(path, artefact.config)
    text = json.dumps(calibration, indent=1, sort_keys=True, allow_nan=False) + "\n"
    for name, content in {CALIBRATION: text.encode(), **(extra or {})}.items():
        (folder / name).write_bytes(content)
    entry |= {
        "precision": precision,
        "external_data": external,
        "quant": {
            "format": precision,
            "method": calibration["method"],
            "linears": sum(isinstance(w, QuantisedLinear) for w in linears(weights).values()),
            "kept": calibration["kept"],
            "calibration_sha256": sha256(folder / CALIBRATION),
        },
        **check_graph(path, graph.opset, graph.dims, precision),
    }
    manifest["ranges"] = []
    return manifest


def _input(graph: Graph) -> str:
    return "uint8" if graph.inputs[0]["dtype"] == "uint8" else "float"


def _prove(
    path: Path, config: StanConfig, graph: Graph, weights: VideoWeights, precision: str
) -> dict[str, Any]:
    """Compare a written graph with the same weights in torch; the manifest's parity record."""
    import torch

    from stan_infer.export.golden import video_case
    from stan_infer.network.torch_ops import encode_video, in_torch

    run = torch.inference_mode()(partial(encode_video, in_torch(weights)))
    sizes = case_sizes(graph.dims["batch"], graph.dims["frames"])
    with closing(
        side_by_side(lambda size: video_case(config, size, _input(graph), run), sizes)
    ) as cases:
        found = (case for _, case in cases)
        return prove(path, found, precision, "the same 8 bits in torch")


def _copy_others(artefact: Artefact, graph: Graph, folder: Path) -> None:
    """Copy all files except the video graph, the model card and an earlier calibration."""
    skipped = {graph.file, *graph.external_data, "README.md", CALIBRATION}
    for name in artefact.manifest["files"]:
        if name not in skipped:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            artefact.copy(name, folder / name)


def _measure_golden(path: Path, golden: dict[str, Any], artefact: Artefact) -> None:
    """Raise the golden data's tolerances to twice the graph's error on it."""
    c = artefact.config
    clip = (c.image_size, c.image_size, 3), (3, c.image_size, c.image_size)
    arrays = read_npz(
        artefact.read(golden["file"]),
        {
            "video": Field("uint8 float32", ("B", "T", "x", "y", "z")),
            "frame_embeds": Field("float32", ("B", "T", c.embed_dim)),
        },
    )
    video, wanted = arrays["video"], arrays["frame_embeds"]
    if video.shape[2:] not in clip or not video.size or not np.isfinite(wanted).all():
        raise InputError(
            f"{golden['file']}: its arrays are not clips and embeddings of this model; export the "
            "checkpoint again"
        )
    got = open_graph(path).run({"video": video})["frame_embeds"]
    measured = relative_error(got, wanted)
    for name in ("video_tolerance", "score_tolerance"):
        golden[name] = max(2 * measured, float(golden.get(name, 0.0)))
