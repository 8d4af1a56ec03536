"""Writing an exported folder with its video graph in 8 bits, checked against the same in torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.calibration_file import CALIBRATION
from stan_infer.artefacts.difference import relative_error
from stan_infer.artefacts.folder import Artefact, Graph, sha256, write_manifest
from stan_infer.artefacts.npz_file import Field, read_npz
from stan_infer.artefacts.parts import PARTS
from stan_infer.engines.open import open_graph
from stan_infer.errors import InputError
from stan_infer.export.parity import case_sizes, check_graph, note_config, prove
from stan_infer.export.read_weights import read_classes
from stan_infer.export.video_graph import write_part, write_video_graph
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
    of other files, by name. A folder that has the video tower in two parts, too, gets both in 8
    bits; all other files are copied. The tolerances of the golden data, which
    are the fp32 model's outputs, are raised to what 8 bits cost there. Raises CheckError if the
    graph's outputs differ from those of the same weights in torch.
    """
    manifest = write_files(artefact, folder, weights, precision, calibration, extra)
    graph = artefact.graph("video")
    assert graph is not None
    parity = _prove(folder, artefact, weights, precision)
    proved = {record["file"] for record in parity}
    manifest["parity"] = [p for p in manifest["parity"] if p["file"] not in proved] + parity
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
    manifest: dict[str, Any] = json.loads(json.dumps(artefact.manifest))
    del manifest["files"]  # the schema stays: it says what all graphs of the folder note
    graphs = _graphs(artefact)
    _copy_others(artefact, graphs, folder)
    text = json.dumps(calibration, indent=1, sort_keys=True, allow_nan=False) + "\n"
    for name, content in {CALIBRATION: text.encode(), **(extra or {})}.items():
        (folder / name).write_bytes(content)
    for graph in graphs:
        external = _write(folder / graph.file, artefact, graph, weights)
        note_config(folder / graph.file, artefact.config)
        entry = next(g for g in manifest["graphs"] if g["file"] == graph.file)
        entry |= {
            "precision": precision,
            "external_data": external,
            "quant": {
                "format": precision,
                "method": calibration["method"],
                "linears": _count(weights, graph.role),
                "kept": calibration["kept"],
                "calibration_sha256": sha256(folder / CALIBRATION),
            },
            **check_graph(folder / graph.file, graph.opset, graph.dims, precision),
        }
    manifest["ranges"] = []
    return manifest


def _graphs(artefact: Artefact) -> list[Graph]:
    """The video graph, and its two parts where the folder has them."""
    return [g for g in artefact.graphs if g.role in ("video", *PARTS)]


def _write(path: Path, artefact: Artefact, graph: Graph, weights: VideoWeights) -> list[str]:
    """Write one of `_graphs`; return the names of external data files beside it."""
    classes = read_classes(artefact)
    how: dict[str, Any] = {"dims": graph.dims, "precision": "fp32", "opset": graph.opset}
    if graph.role == "video":
        how |= {"input": _input(graph)}
        return write_video_graph(path, artefact.config, weights, classes=classes, **how)
    how |= {"role": graph.role}
    return write_part(path, artefact.config, weights, classes=classes, **how)


def _count(weights: VideoWeights, role: str) -> int:
    """How many linears of a graph are in 8 bits."""
    in_8_bits = [n for n, w in linears(weights).items() if isinstance(w, QuantisedLinear)]
    in_trunk = [n for n in in_8_bits if n.startswith("video/trunk/")]
    return {"video": len(in_8_bits), "trunk": len(in_trunk)}.get(
        role, len(in_8_bits) - len(in_trunk)
    )


def _input(graph: Graph) -> str:
    return "uint8" if graph.inputs[0]["dtype"] == "uint8" else "float"


def _prove(
    folder: Path, artefact: Artefact, weights: VideoWeights, precision: str
) -> list[dict[str, Any]]:
    """Compare the written graphs with the same weights in torch; the manifest's parity records."""
    import torch

    from stan_infer.export.golden import split_cases, video_case
    from stan_infer.network.torch_ops import encode_video, in_torch

    config, tensors = artefact.config, in_torch(weights)
    run = torch.inference_mode()(partial(encode_video, tensors))
    graph = artefact.graph("video")
    assert graph is not None
    limits, input = {k: graph.dims[k] for k in ("batch", "frames")}, _input(graph)
    sizes = case_sizes(limits["batch"], limits["frames"])
    how = (precision, "the same 8 bits in torch")
    with closing(side_by_side(lambda size: video_case(config, size, input, run), sizes)) as cases:
        found = [prove(folder / graph.file, (case for _, case in cases), *how)]
    if parts := [g for g in _graphs(artefact) if g.role in PARTS]:
        of_role = split_cases(config, tensors, limits, input, run)
        found += [prove(folder / part.file, of_role[part.role], *how) for part in parts]
    return found


def _copy_others(artefact: Artefact, graphs: Sequence[Graph], folder: Path) -> None:
    """Copy all files except these graphs, the model card and an earlier calibration."""
    skipped = {"README.md", CALIBRATION}
    for graph in graphs:
        skipped |= {graph.file, *graph.external_data}
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
