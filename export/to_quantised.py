"""An fp32 folder and 8-bit weights -> a folder with a quantised video graph, proved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from stan_infer.artefacts.calibration_file import CALIBRATION
from stan_infer.artefacts.difference import Difference, relative_error
from stan_infer.artefacts.folder import Artefact, sha256, write_manifest
from stan_infer.artefacts.npz_file import Field, read_npz
from stan_infer.artefacts.precision import EIGHT_BIT_NOISE
from stan_infer.engines.ort_session import open_graph
from stan_infer.errors import CheckError, InputError
from stan_infer.export.golden import random_clips
from stan_infer.export.parity import case_sizes, check_graph
from stan_infer.export.read_weights import read_classes
from stan_infer.export.video_graph import write_video_graph
from stan_infer.network.eight_bits import QuantProduct, products
from stan_infer.network.fold import VideoWeights
from stan_infer.network.torch_ops import encode_video


def quantised_names(weights: VideoWeights) -> list[str]:
    """The products that are in 8 bits."""
    return [n for n, p in products(weights).items() if isinstance(p, QuantProduct)]


def write_quantised(
    artefact: Artefact,
    folder: Path,
    weights: VideoWeights,
    precision: str,
    calibration: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write the whole folder but for its manifest's hashes of later files, into an empty `folder`.

    The towers that are not in 8 bits, vocabulary, preprocessing and golden data are copied. The
    graph is compared with the same 8 bits in torch, and its distance from the golden data, which
    is the model's own, becomes that data's tolerance. extra: other files by name. Raises
    CheckError.
    """
    graph = artefact.graph("video")
    assert graph is not None
    manifest: dict[str, Any] = json.loads(json.dumps(artefact.manifest))
    entry = next(g for g in manifest["graphs"] if g["file"] == graph.file)
    skipped = {graph.file, *graph.external_data, "README.md", CALIBRATION}
    for name in artefact.manifest["files"]:
        if name not in skipped:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            artefact.copy(name, folder / name)
    path = folder / graph.file
    external = write_video_graph(
        path,
        artefact.config,
        weights,
        dims=graph.dims,
        input="uint8" if graph.inputs[0]["dtype"] == "uint8" else "float",
        precision="fp32",
        opset=graph.opset,
        classes=read_classes(artefact),
    )
    text = json.dumps(calibration, indent=1, sort_keys=True, allow_nan=False) + "\n"
    (folder / CALIBRATION).write_text(text, encoding="utf-8")
    for name, content in (extra or {}).items():
        (folder / name).write_bytes(content)
    record = check_graph(path, graph.opset, graph.dims)
    names = quantised_names(weights)
    entry |= {
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "precision": precision,
        "external_data": external,
        "quant": {
            "format": precision,
            "method": calibration["method"],
            "linears": len(names),
            "kept": calibration["kept"],
            "calibration_sha256": sha256(folder / CALIBRATION),
        },
        **record,
    }
    session = open_graph(path, arena=False)
    parity = _prove(session, artefact, weights, graph.dims, path.name)
    manifest["parity"] = [p for p in manifest["parity"] if p["file"] != graph.file] + [parity]
    manifest["ranges"] = []
    if manifest.get("golden"):
        _measure_golden(session, manifest["golden"], artefact)
    for key in ("schema", "files"):
        manifest.pop(key)
    write_manifest(folder, manifest)


def _prove(
    session: onnxruntime.InferenceSession,
    artefact: Artefact,
    weights: VideoWeights,
    dims: Mapping[str, tuple[int, int]],
    name: str,
) -> dict[str, Any]:
    """Compare the graph with the same 8 bits in torch; return the parity record."""
    sizes = case_sizes(dims["batch"], dims["frames"])
    input = "uint8" if weights.patches.layout == "BTHWC" else "float"
    difference = Difference()
    for b, t in sizes:
        clips = random_clips(artefact.config, b, t, input, seed=100 * b + t)
        with torch.inference_mode():
            wanted = [x.numpy() for x in encode_video(weights, torch.from_numpy(clips))]
        got = session.run(["video_embeds", "frame_embeds"], {"video": clips})
        for w, g in zip(wanted, got, strict=True):
            difference.add(g, w)
    if not difference.relative <= EIGHT_BIT_NOISE:  # so written that a NaN fails
        raise CheckError(
            f"{name} differs from the same 8 bits in torch by {difference.relative:.2e} of the "
            f"largest value; allowed is {EIGHT_BIT_NOISE}: nothing was written"
        )
    return {
        "file": name,
        "backend": f"onnxruntime {session.get_providers()[0]}",
        "backend_version": onnxruntime.__version__,
        "reference": "the same 8 bits in torch",
        "cases": [list(s) for s in sizes],
        **difference.record(),
        "tolerance": EIGHT_BIT_NOISE,
        "pass": True,
    }


def _measure_golden(
    session: onnxruntime.InferenceSession,
    golden: dict[str, Any],
    artefact: Artefact,
) -> None:
    """Set the tolerances of the golden data to twice what 8 bits were measured to cost there."""
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
        raise InputError(f"{golden['file']}: its clips are no clips of this model")
    got = session.run(["frame_embeds"], {"video": video})[0]
    measured = relative_error(got, wanted)
    for name in ("video_tolerance", "score_tolerance"):
        golden[name] = max(2 * measured, float(golden.get(name, 0.0)))
