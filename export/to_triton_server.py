"""A model repository for NVIDIA's Triton Inference Server: the graphs of a folder, served.

REPOSITORY/video, text, preprocess, score: one model each, config.pbtxt and 1/model.onnx or
model.plan. REPOSITORY/video_pipeline: an ensemble from decoded frames of any size to embeddings;
its clips meet in the dynamic batcher of `video`. Fields are those of Triton's model_config.proto.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import stan_infer
from stan_infer.artefacts.checked_graph import checked_bare_graph, checked_graph
from stan_infer.artefacts.folder import ENGINES_FOLDER, MANIFEST, Artefact, Graph, sha256
from stan_infer.errors import CheckError, InputError, check_word
from stan_infer.system.atomic import new_folder
from stan_infer.system.json_file import checked, read_object
from stan_infer.tensorrt_plans.options import DEFAULT_TEXTS
from stan_infer.tensorrt_plans.plan_file import Plan, check_origin, read_plan
from stan_infer.text.vocabulary import CLIP_LICENCE, CLIP_LICENCE_FILE

FORMAT = "triton-server"  # what export calls it
BACKENDS = {"onnxruntime": "onnx", "tensorrt": "tensorrt"}  # of towers -> the export that has them
GRAPH = "model.onnx"  # what the server opens
MARKER = "stan_infer.json"  # says whose the repository is; models are folders, so Triton skips it
ROLES = ("video", "text", "preprocess", "score")
_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
_MAX_MARKER = 2**22
_DELAY_US = 2000  # that a request waits for others of its shape

Message = Mapping[str, Any]  # of protobuf's text format; a list is a repeated field


class _Marker(TypedDict):
    """Of MARKER: its files and their hashes."""

    files: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Word:
    """An enumerator, which has no quotes."""

    text: str


def write_repository(artefact: Artefact, out: Path, *, backend: str = "onnxruntime") -> list[str]:
    """Write the repository of an exported folder and return the names of its models.

    backend: of the towers; "tensorrt" takes the folder's plans of TensorRT. Raises InputError for
    an unknown word, a folder that has no such plan or whose files would take each other's place,
    or a place that must not be replaced; CheckError for a file that is not the one exported.
    """
    check_word("backend", backend, BACKENDS)
    graphs = {role: g for role in ROLES if (g := artefact.graph(role)) is not None}
    towers = [role for role in ("video", "text") if role in graphs]
    plans: dict[str, Plan] = {}
    if backend == "tensorrt":
        plans = {role: _plan(artefact, graphs[role]) for role in towers}
    with new_folder(out, why_keep_repository, sources=[artefact.path]) as folder:
        configs = {}
        for role, graph in graphs.items():
            plan = plans.get(role)
            configs[role] = _model(artefact, graph, plan)
            _copy(artefact, graph, plan, folder / role / "1")
        if "preprocess" in configs and "video" in configs and _takes_pixels(graphs["video"]):
            configs["video_pipeline"] = _pipeline(configs["preprocess"], configs["video"])
            # A version must be there although it holds nothing; copying tools drop empty folders.
            (folder / "video_pipeline" / "1").mkdir(parents=True)
            (folder / "video_pipeline" / "1" / ".keep").touch()
        for name, config in configs.items():
            (folder / name / "config.pbtxt").write_text(text_format(config), encoding="utf-8")
        for name in ("tokenizer.json", "labels.txt"):
            if artefact.has(name):
                _put(artefact, name, folder / name)
        if (folder / "tokenizer.json").exists():
            (folder / CLIP_LICENCE_FILE).write_text(CLIP_LICENCE, encoding="utf-8")
        _check_written(artefact, folder, {r: g for r, g in graphs.items() if r not in plans})
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        marker = {
            "tool": {"name": "stan_infer", "version": stan_infer.__version__},
            "backend": backend,
            "manifest_sha256": sha256(artefact.path / MANIFEST),
            "models": sorted(configs),
            # A plan is for one GPU, and for the version that is in the server's container.
            "plans": {
                role: {"tensorrt": plan.version, "sm": plan.built_on, "flags": plan.flags}
                for role, plan in plans.items()
            },
            "files": {p.relative_to(folder).as_posix(): sha256(p) for p in files},
            "preprocess": artefact.manifest.get("preprocess"),
            "text": artefact.manifest.get("text"),
        }
        text = json.dumps(marker, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / MARKER).write_text(text + "\n", encoding="utf-8")
    return sorted(configs)


def text_format(message: Message, indent: str = "") -> str:
    """A message in protobuf's text format, fields in the order given."""
    lines = []
    for name, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{text_format(item, indent + '  ')}{indent}}}\n")
            elif isinstance(item, Word):
                lines.append(f"{indent}{name}: {item.text}\n")
            elif isinstance(item, (bool, int)):
                lines.append(f"{indent}{name}: {str(item).lower()}\n")
            else:
                lines.append(f"{indent}{name}: {json.dumps(item)}\n")
    return "".join(lines)


def _model(artefact: Artefact, graph: Graph, plan: Plan | None) -> dict[str, Any]:
    """config.pbtxt of one graph; the first axis is Triton's batch where it is free from 1 on."""
    limits = _batch(graph, plan)
    group: dict[str, Any] = {"count": 1, "kind": Word("KIND_GPU" if plan else "KIND_AUTO")}
    if plan:
        group["profile"] = [str(plan.widest())]
    outputs = list(graph.outputs)
    config: dict[str, Any] = {
        "name": graph.role,
        **({"platform": "tensorrt_plan"} if plan else {"backend": "onnxruntime"}),
        "max_batch_size": limits or 0,
        "input": [_tensor(v, bool(limits)) for v in graph.inputs],
        "output": [_tensor(v, bool(limits)) for v in outputs],
        "instance_group": [group],
    }
    if limits:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": _DELAY_US}
    if graph.role == "preprocess":
        # One clip's frames are one item of the video model's batch.
        pixels = config["output"][0]
        pixels["reshape"] = {"shape": pixels["dims"]}
        pixels["dims"] = [1, *pixels["dims"]]
    return config


def _batch(graph: Graph, plan: Plan | None) -> int | None:
    """Largest batch that Triton may make of requests, or None where it must not."""
    if graph.role not in ("video", "text"):
        return None
    low, high = graph.dims["batch"]
    if plan:
        ((least, _, most),) = plan.profiles[plan.widest()].values()  # the one that is served
        low, high = least[0], most[0]
    if low != 1 or high == 1:
        return None
    return min(high, DEFAULT_TEXTS) if graph.role == "text" else high


def _tensor(value: Mapping[str, Any], is_batched: bool) -> dict[str, Any]:
    dtype = str(value["dtype"])
    if dtype not in _TYPES:
        raise InputError(f"{value['name']} is {dtype}; Triton gets {', '.join(_TYPES)} only")
    dims = [n if isinstance(n, int) else -1 for n in value["shape"]]
    return {
        "name": str(value["name"]),
        "data_type": Word(_TYPES[dtype]),
        "dims": dims[1:] if is_batched else dims,
    }


def _pipeline(preprocess: Message, video: Message) -> dict[str, Any]:
    """Frames of one video -> what the video model gives, through both models."""
    frames, (taken,) = preprocess["input"][0], video["input"]
    outputs = []
    for value in video["output"]:
        # An ensemble without a batch axis of its own sees that of its models.
        dims = [1, *value["dims"]] if video["max_batch_size"] else value["dims"]
        outputs.append({**value, "dims": dims})
    return {
        "name": "video_pipeline",
        "platform": "ensemble",
        "max_batch_size": 0,
        "input": [dict(frames)],
        "output": outputs,
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": "preprocess",
                    "model_version": -1,
                    "input_map": {"key": frames["name"], "value": frames["name"]},
                    "output_map": {"key": "pixels", "value": "clip"},
                },
                {
                    "model_name": "video",
                    "model_version": -1,
                    "input_map": {"key": taken["name"], "value": "clip"},
                    "output_map": [{"key": v["name"], "value": v["name"]} for v in outputs],
                },
            ]
        },
    }


def _takes_pixels(graph: Graph) -> bool:
    """Whether the video graph takes what the preprocessing gives: bytes, and one clip."""
    return graph.inputs[0]["dtype"] == "uint8" and graph.dims["batch"][0] == 1


def _plan(artefact: Artefact, graph: Graph) -> Plan:
    found = []
    for path in sorted((artefact.path / ENGINES_FOLDER).glob("*.plan")):
        plan = read_plan(path)
        if plan.engine == "trt" and plan.role == graph.role:
            found.append(plan)
    if not found:
        raise InputError(
            f"folder {artefact.path} holds no plan of TensorRT for {graph.role}, and Triton does "
            f"not take those of TensorRT-RTX: stan-infer export {artefact.path} --format tensorrt"
        )
    if len(found) > 1:
        names = ", ".join(plan.path.name for plan in found)
        raise InputError(
            f"folder {artefact.path} holds {len(found)} plans of TensorRT for {graph.role} "
            f"({names}): take those that are not for the server out of {ENGINES_FOLDER}/"
        )
    check_origin(artefact, graph, found[0])
    return found[0]


def _copy(artefact: Artefact, graph: Graph, plan: Plan | None, folder: Path) -> None:
    folder.mkdir(parents=True)
    if plan:
        (folder / "model.plan").write_bytes(plan.load())
        return
    with checked_graph(artefact, graph):  # told before anything is copied
        pass
    _put(artefact, graph.file, folder / GRAPH)
    for name in graph.external_data:  # the graph names it, so it keeps its name
        _put(artefact, name, folder / Path(name).name)


def _put(artefact: Artefact, name: str, target: Path) -> None:
    """Copy a file of the folder to a place where none is; what was written has the file's hash."""
    if os.path.lexists(target):
        raise InputError(
            f"artefact {artefact.path}: {name[:80]} would take the place of another file in the "
            f"repository, {target.name[:80]}: export the checkpoint again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    artefact.copy(name, target)


def _check_written(artefact: Artefact, folder: Path, graphs: Mapping[str, Graph]) -> None:
    """Check what the server will open: the repository's graphs, as the folder's were checked."""
    for role, graph in graphs.items():
        path = folder / role / "1" / GRAPH
        checked_bare_graph(path, [Path(name).name for name in graph.external_data])
        if sha256(path) != artefact.manifest["files"][graph.file]["sha256"]:
            raise CheckError(f"{path.name} of {role} is not {graph.file}: nothing was written")


def why_keep_repository(folder: Path) -> str | None:
    """Why a folder is no earlier repository of ours and nothing else, or None."""
    try:
        known = checked(read_object(folder / MARKER, _MAX_MARKER), _Marker, MARKER)["files"]
    except InputError:
        return f"it has no {MARKER} of an earlier export"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (path.is_file() and name not in {*known, MARKER}):
            return f"{name[:80]} is not part of the earlier export in it"
        if path.is_file() and name != MARKER and sha256(path) != known[name]:
            return f"{name[:80]} was changed since the earlier export"
    return None
