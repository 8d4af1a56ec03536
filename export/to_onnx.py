"""Stan -> ONNX through torch.onnx.export, with the checks that the exporter does not make.

torch's exporter bakes axes in silently in several cases; every graph is therefore run in one ONNX
Runtime session at several (B, T) and compared with the model before anything is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import stan_infer
from stan_infer.artefact import Artefact, read_artefact, sha256, why_keep, write_manifest
from stan_infer.atomic import new_folder
from stan_infer.config import StanConfig
from stan_infer.errors import CheckError, InputError, nearest, require
from stan_infer.model import Stan
from stan_infer.tokenizer import write_vocabulary

if TYPE_CHECKING:
    import onnxruntime

OPSET = 20  # LayerNormalization is one node, and every runtime we know reads it
MAX_BATCH = 64
TOLERANCE = 1e-4  # of outputs relative to the largest value; fp32 graphs measure 1e-6
_INPUTS = ("uint8", "float")


class VideoGraph(nn.Module):
    """The exported video tower: clips -> frame embeddings and their mean."""

    def __init__(self, model: Stan) -> None:
        """Wrap `model` without copying it."""
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Clips as in Stan.encode_video -> [B, E] and [B, T, E]."""
        frames = self.model.encode_video(video).float()
        return frames.mean(1), frames


class TextGraph(nn.Module):
    """The exported text tower: ids -> text embeddings and token features."""

    def __init__(self, model: Stan) -> None:
        """Wrap `model` without copying it."""
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [Q, L] -> [Q, E] and [Q, L, E]."""
        tokens = self.model.encode_text_tokens(input_ids).float()
        end = input_ids.argmax(-1)[:, None, None].expand(-1, 1, tokens.shape[-1])
        return tokens.gather(1, end)[:, 0], tokens


def export_onnx(
    model: Stan, out: Path, *, precision: str, input: str, say: Callable[[str], None]
) -> Artefact:
    """Write video.onnx, text.onnx, tokenizer.json and manifest.json; see export_model."""
    if precision != "fp32":
        hint = nearest(precision, ["fp32"])
        raise InputError(f"ONNX export has no precision '{precision}'{hint} (fp32)")
    if input not in _INPUTS:
        raise InputError(f"input '{input}' is unknown{nearest(input, _INPUTS)} (uint8, float)")
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "ONNX export", "stan-infer[cpu]")
    model = model.float().eval()
    config = model.config
    with new_folder(out, why_keep) as folder, torch.no_grad():
        graphs, parity = [], []
        say("exporting the video tower")
        graphs.append(_export_video(model, folder, input))
        say("comparing the video tower with the model")
        parity.append(_prove_video(model, folder, input))
        if config.has_text:
            say("exporting the text tower")
            graphs.append(_export_text(model, folder))
            say("comparing the text tower with the model")
            parity.append(_prove_text(model, folder))
            if config.vocab_size == 49408:
                write_vocabulary(folder / "tokenizer.json")
        write_manifest(
            folder,
            {
                "tool": {"name": "stan_infer", "version": stan_infer.__version__},
                "model": config.to_dict(),
                "preprocess": _preprocess(config, input),
                "graphs": graphs,
                "parity": parity,
            },
        )
    return read_artefact(out, check_hashes=False)


def parity_cases(config: StanConfig) -> list[tuple[int, int]]:
    """(B, T) pairs that show a baked axis: 1, B >= 2 with T unlike the example's, the largest."""
    top = config.max_frames
    cases = [(1, 1), (1, 2), (2, 3), (3, 5), (1, config.frames), (1, top)]
    return sorted({(b, min(t, top)) for b, t in cases})


def _export_video(model: Stan, folder: Path, input: str) -> dict[str, Any]:
    config = model.config
    # All example sizes differ from each other and from 1, or the exporter makes axes constant.
    frames = min(5, config.max_frames)
    example = torch.from_numpy(_random_clips(config, 2, frames, input, seed=0))
    dims = {"batch": (1, MAX_BATCH), "frames": (1, config.max_frames)}
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    # A time table of one row has no second axis to be dynamic over.
    axes = {0: batch}
    if config.max_frames > 1:
        axes[1] = torch.export.Dim("frames", min=1, max=config.max_frames)
    return _export(
        VideoGraph(model), example, "video", axes, ["video_embeds", "frame_embeds"], folder, dims
    )


def _export_text(model: Stan, folder: Path) -> dict[str, Any]:
    config = model.config
    ids = torch.from_numpy(_random_ids(config, 3, config.context_length, seed=0))
    # The pooled token is found by ArgMax over the ids, so the length can be dynamic as well.
    axes = {
        0: torch.export.Dim("batch", min=1, max=4096),
        1: torch.export.Dim("length", min=2, max=config.context_positions),
    }
    dims = {"batch": (1, 4096), "length": (2, config.context_positions)}
    names = ["text_embeds", "token_embeds"]
    return _export(TextGraph(model), ids, "input_ids", axes, names, folder, dims)


def _export(
    module: nn.Module,
    example: Tensor,
    input_name: str,
    axes: dict[int, Any],
    output_names: list[str],
    folder: Path,
    dims: dict[str, tuple[int, int]],
) -> dict[str, Any]:
    import onnx

    role = "video" if input_name == "video" else "text"
    program = torch.onnx.export(
        module.eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes={input_name: axes},
        input_names=[input_name],
        output_names=output_names,
        verbose=False,
    )
    path = folder / f"{role}.onnx"
    assert program is not None
    # Protocol buffers end at 2 GB; larger weights go beside the graph.
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    program.save(str(path), external_data=size > 1.8e9)
    proto = onnx.load(str(path), load_external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
    opset = {o.domain or "ai.onnx": o.version for o in proto.opset_import}
    if opset != {"ai.onnx": OPSET}:
        raise CheckError(
            f"{path.name} uses the operator sets {opset}; only ai.onnx {OPSET} is kept"
        )
    inputs, outputs = (_values(v) for v in (proto.graph.input, proto.graph.output))
    for value, wanted in ((inputs[0], set(dims)), (outputs[1], set(dims))):
        if {s for s in value["shape"] if isinstance(s, str)} != wanted:
            raise CheckError(
                f"{path.name}: {value['name']} has shape {value['shape']}, but {sorted(wanted)} "
                "must be dynamic"
            )
    return {
        "file": path.name,
        "role": role,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "opset": OPSET,
        "ir": proto.ir_version,
        "precision": "fp32",
        "nodes": len(proto.graph.node),
        "inputs": inputs,
        "outputs": outputs,
        "dims": {k: list(v) for k, v in dims.items()},
        "external_data": [f"{path.name}.data"] if (folder / f"{path.name}.data").exists() else [],
        "quant": None,
    }


def _values(values: Any) -> list[dict[str, Any]]:
    import onnx

    return [
        {
            "name": v.name,
            "dtype": onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name,
            "shape": [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
        }
        for v in values
    ]


def _prove_video(model: Stan, folder: Path, input: str) -> dict[str, Any]:
    from stan_infer.engines.ort_session import open_graph

    session, cases = open_graph(folder / "video.onnx"), parity_cases(model.config)
    pairs = []
    for seed, (b, t) in enumerate(cases):
        clips = _random_clips(model.config, b, t, input, seed=seed + 1)
        wanted = VideoGraph(model)(torch.from_numpy(clips))
        pairs.append((wanted, session.run(None, {"video": clips})))
    return _parity("video.onnx", session, cases, pairs)


def _prove_text(model: Stan, folder: Path) -> dict[str, Any]:
    from stan_infer.engines.ort_session import open_graph

    config, session = model.config, open_graph(folder / "text.onnx")
    cases = sorted({(1, config.context_length), (5, config.context_positions), (2, 3)})
    pairs = []
    for seed, (q, length) in enumerate(cases):
        ids = _random_ids(config, q, length, seed=seed + 1)
        pairs.append(
            (TextGraph(model)(torch.from_numpy(ids)), session.run(None, {"input_ids": ids}))
        )
    return _parity("text.onnx", session, cases, pairs)


def _parity(
    file: str,
    session: onnxruntime.InferenceSession,
    cases: list[tuple[int, int]],
    pairs: list[tuple[tuple[Tensor, ...], Any]],
) -> dict[str, Any]:
    import onnxruntime

    worst, cosine = 0.0, 1.0
    for case, (wanted, got) in zip(cases, pairs, strict=True):
        for w, g in zip((w.numpy() for w in wanted), got, strict=True):
            if w.shape != g.shape:
                raise CheckError(f"{file} at {case}: shape {g.shape} instead of {w.shape}")
            norms = np.linalg.norm(w, axis=-1) * np.linalg.norm(g, axis=-1)
            # numpy's maximum and minimum keep a NaN; Python's max and min would drop it.
            worst = float(np.maximum(worst, np.abs(w - g).max() / np.abs(w).max()))
            cosine = float(np.minimum(cosine, ((w * g).sum(-1) / norms).min()))
    if not worst <= TOLERANCE:  # so written that a NaN fails
        raise CheckError(
            f"{file}: outputs differ from the model by {worst:.2e} of the largest value; allowed "
            f"is {TOLERANCE:.0e}: nothing was written"
        )
    return {
        "file": file,
        "backend": f"onnxruntime {session.get_providers()[0]}",
        "backend_version": onnxruntime.__version__,
        "cases": [list(c) for c in cases],
        "max_rel": worst,
        "min_cos": min(cosine, 1.0),
        "tolerance": TOLERANCE,
        "pass": True,
    }


def _random_clips(config: StanConfig, b: int, t: int, input: str, *, seed: int) -> np.ndarray:
    s, rng = config.image_size, np.random.default_rng(seed)
    if input == "uint8":
        return rng.integers(0, 256, (b, t, s, s, 3), dtype=np.uint8)
    return rng.standard_normal((b, t, 3, s, s), dtype=np.float32)


def _random_ids(config: StanConfig, q: int, length: int, *, seed: int) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(1, config.vocab_size - 2, (q, length))
    ids[:, 0] = config.vocab_size - 2
    for i, row in enumerate(ids):
        end = 1 + i % (length - 1)
        row[end:] = 0
        row[end] = config.vocab_size - 1
    return ids.astype(np.int32)


def _preprocess(config: StanConfig, input: str) -> dict[str, Any]:
    return {
        "input_dtype": "uint8" if input == "uint8" else "float32",
        "layout": "BTHWC" if input == "uint8" else "BTCHW",
        "color": "RGB",
        "resize": {
            "short_side": config.short_side,
            "filter": "bilinear",
            "antialias": False,
            "rounding": "int(side * scale + 0.5)",
        },
        "crop": "center",
        "mean": list(config.mean),
        "std": list(config.std),
        "folded_in_graph": input == "uint8",
        "sampling": {
            "frames": config.frames,
            "rule": "round_half_even((n-1)/T*i) + trunc((n-1)/T/2)",
        },
    }
