"""Writing an exported folder as a model repository of NVIDIA's Triton Inference Server.

REPOSITORY/video, text, trunk, branch, preprocess, score: one model each, with config.pbtxt and
1/model.onnx or 1/model.plan. REPOSITORY/video_pipeline: an ensemble from decoded frames of any size
to embeddings; the dynamic batcher of `video` puts clips of several requests into one batch.
REPOSITORY/frame_pipeline, of a folder with parts: an ensemble from decoded frames to trunk rows, of
which a client keeps those of a window and gives them to `branch`. It has a preprocessing of its own
(preprocess_frames), whose frames are items of the trunk's batch, not one item. Fields of the
configs are those of Triton's model_config.proto.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import stan_infer
from stan_infer.artefacts.checked_graph import checked_graph
from stan_infer.artefacts.folder import (
    ENGINES_FOLDER,
    MANIFEST,
    Artefact,
    Graph,
    sha256,
    write_json,
)
from stan_infer.errors import InputError, check_word
from stan_infer.system.atomic import new_folder
from stan_infer.system.json_file import checked, read_object
from stan_infer.tensorrt_plans.options import DEFAULT_FRAMES, DEFAULT_TEXTS, TOWERS
from stan_infer.tensorrt_plans.plan_file import Plan, check_origin, read_plan
from stan_infer.text.vocabulary import CLIP_LICENCE

FORMAT = "triton-server"  # the --format of export
# Backend of the towers -> the format of an exported folder that has their files.
BACKENDS = {"onnxruntime": "onnx", "tensorrt": "tensorrt"}
# Marks the repository as ours. Triton ignores it, because models are folders.
MARKER = "stan_infer.json"
ROLES = (*TOWERS, "preprocess", "score")
_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
_MAX_MARKER = 2**22
_DELAY_US = 2000  # how long a request waits for others of its shape, in microseconds

Message = Mapping[str, Any]  # a protobuf message by field name; a list is a repeated field


class _Marker(TypedDict):
    """The part of MARKER that is read again: files of the repository and their hashes."""

    files: dict[str, str]


@dataclasses.dataclass(frozen=True)
class EnumValue:
    """A value of an enum, which protobuf's text format writes without quotes."""

    text: str


def write_repository(artefact: Artefact, out: Path, *, backend: str = "onnxruntime") -> list[str]:
    """Write an exported folder as a repository at `out`; return the names of its models.

    backend: of the towers; "tensorrt" uses the folder's plans of TensorRT. Raises InputError for an
    unknown backend, a folder that lacks a plan, or an `out` that must not be replaced; CheckError
    for a file that was changed after the export.
    """
    check_word("backend", backend, BACKENDS)
    graphs = {role: g for role in ROLES if (g := artefact.graph(role)) is not None}
    towers = [role for role in TOWERS if role in graphs]
    plans: dict[str, Plan] = {}
    if backend == "tensorrt":
        plans = {role: _plan(artefact, graphs[role]) for role in towers}
    with new_folder(out, why_keep_repository, sources=[artefact.path]) as folder:
        configs = {}
        for role, graph in graphs.items():
            plan = plans.get(role)
            configs[role] = _model(graph, plan)
            _copy(artefact, graph, plan, folder / role / "1")
        if "preprocess" in configs and "video" in configs and _takes_pixels(graphs["video"]):
            configs["video_pipeline"] = _pipeline(configs["preprocess"], configs["video"])
        if "preprocess" in configs and "trunk" in configs and _takes_pixels(graphs["trunk"]):
            configs["preprocess_frames"] = _preprocess_frames(graphs["preprocess"])
            _copy(artefact, graphs["preprocess"], None, folder / "preprocess_frames" / "1")
            configs["frame_pipeline"] = _frames(configs["preprocess_frames"], configs["trunk"])
        for name in {"video_pipeline", "frame_pipeline"} & configs.keys():
            # Triton needs the folder of a version. It is empty here, and some tools that copy
            # folders leave out empty ones.
            (folder / name / "1").mkdir(parents=True)
            (folder / name / "1" / ".keep").touch()
        for name, config in configs.items():
            (folder / name / "config.pbtxt").write_text(text_format(config), encoding="utf-8")
        for name in ("tokenizer.json", "labels.txt"):
            if artefact.has(name):
                artefact.copy(name, folder / name)
        if (folder / "tokenizer.json").exists():
            (folder / CLIP_LICENCE.name).write_bytes(CLIP_LICENCE.read_bytes())
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        marker = {
            "tool": {"name": "stan_infer", "version": stan_infer.__version__},
            "backend": backend,
            "manifest_sha256": sha256(artefact.path / MANIFEST),
            "models": sorted(configs),
            # A plan needs this GPU, and a server with this version of TensorRT.
            "plans": {
                role: {"tensorrt": plan.version, "sm": plan.built_on, "flags": plan.flags}
                for role, plan in plans.items()
            },
            "files": {p.relative_to(folder).as_posix(): sha256(p) for p in files},
            "preprocess": artefact.manifest.get("preprocess"),
            "text": artefact.manifest.get("text"),
        }
        write_json(folder / MARKER, marker)
    return sorted(configs)


def text_format(message: Message, indent: str = "") -> str:
    """A message in protobuf's text format, fields in the order given."""
    lines = []
    for name, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{text_format(item, indent + '  ')}{indent}}}\n")
            elif isinstance(item, EnumValue):
                lines.append(f"{indent}{name}: {item.text}\n")
            elif isinstance(item, (bool, int)):
                lines.append(f"{indent}{name}: {str(item).lower()}\n")
            else:
                lines.append(f"{indent}{name}: {json.dumps(item)}\n")
    return "".join(lines)


def _model(graph: Graph, plan: Plan | None) -> dict[str, Any]:
    """The config of one graph. If its batch may be 1 and more, Triton makes batches of requests."""
    largest_batch = _largest_batch(graph, plan)
    group: dict[str, Any] = {"count": 1, "kind": EnumValue("KIND_GPU" if plan else "KIND_AUTO")}
    if plan:
        group["profile"] = [str(plan.widest())]
    config: dict[str, Any] = {
        "name": graph.role,
        **({"platform": "tensorrt_plan"} if plan else {"backend": "onnxruntime"}),
        "max_batch_size": largest_batch,
        "input": [_tensor(v, largest_batch > 0) for v in graph.inputs],
        "output": [_tensor(v, largest_batch > 0) for v in graph.outputs],
        "instance_group": [group],
    }
    if largest_batch:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": _DELAY_US}
    if graph.role == "preprocess":
        # The frames of one clip are one item of the video model's batch.
        pixels = config["output"][0]
        pixels["reshape"] = {"shape": pixels["dims"]}
        pixels["dims"] = [1, *pixels["dims"]]
    return config


def _largest_batch(graph: Graph, plan: Plan | None) -> int:
    """The largest batch that Triton may make of requests; 0: it must make none."""
    if graph.role not in TOWERS:
        return 0
    low, high = graph.dims["frames" if graph.role == "trunk" else "batch"]
    if plan:  # of the profile that is served, in which all inputs have one shape
        least, _, most = next(iter(plan.profiles[plan.widest()].values()))
        low, high = least[0], most[0]
    if low != 1 or high == 1:
        return 0
    return min(high, {"text": DEFAULT_TEXTS, "trunk": DEFAULT_FRAMES}.get(graph.role, high))


def _tensor(value: Mapping[str, Any], is_batched: bool) -> dict[str, Any]:
    dtype = str(value["dtype"])
    if dtype not in _TYPES:
        raise InputError(
            f"{value['name']} is {dtype}; a repository can have only {', '.join(_TYPES)}"
        )
    dims = [n if isinstance(n, int) else -1 for n in value["shape"]]
    return {
        "name": str(value["name"]),
        "data_type": EnumValue(_TYPES[dtype]),
        "dims": dims[1:] if is_batched else dims,
    }


def _preprocess_frames(graph: Graph) -> dict[str, Any]:
    """The config of the preprocessing whose frames are a batch, as the graph gives them."""
    config = _model(graph, None)
    return {**config, "name": "preprocess_frames", "output": [_tensor(graph.outputs[0], False)]}


def _pipeline(preprocess: Message, video: Message) -> dict[str, Any]:
    """The config of the ensemble of frames of one video through both models."""
    return _ensemble("video_pipeline", preprocess, video, 1)


def _frames(preprocess: Message, trunk: Message) -> dict[str, Any]:
    """The config of the ensemble of frames, which need not belong together, to trunk rows."""
    return _ensemble("frame_pipeline", preprocess, trunk, -1)


def _ensemble(name: str, preprocess: Message, model: Message, batch: int) -> dict[str, Any]:
    """The config of an ensemble of both; batch: the size of the second's batch axis, -1 for any."""
    frames, (taken,) = preprocess["input"][0], model["input"]
    outputs = []
    for value in model["output"]:
        # This ensemble has no batch axis of its own, so that of its models is part of the shapes.
        dims = [batch, *value["dims"]] if model["max_batch_size"] else value["dims"]
        outputs.append({**value, "dims": dims})
    names = {v["name"]: v["name"] for v in outputs}
    steps = [
        _step(preprocess["name"], {frames["name"]: frames["name"]}, {"pixels": "resized"}),
        _step(model["name"], {taken["name"]: "resized"}, names),
    ]
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": 0,
        "input": [dict(frames)],
        "output": outputs,
        "ensemble_scheduling": {"step": steps},
    }


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Message:
    """One step of the ensemble; inputs, outputs: the model's names -> those in the ensemble."""
    maps = {"input_map": inputs, "output_map": outputs}
    return {
        "model_name": model,
        "model_version": -1,
        **{k: [{"key": a, "value": b} for a, b in names.items()] for k, names in maps.items()},
    }


def _takes_pixels(graph: Graph) -> bool:
    """Whether a graph takes the output of the preprocessing: uint8, and one clip or any frames."""
    return graph.inputs[0]["dtype"] == "uint8" and graph.dims.get("batch", (1, 1))[0] == 1


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
    with checked_graph(artefact, graph):  # a bad graph is refused before anything is copied
        pass
    artefact.copy(graph.file, folder / "model.onnx")
    for name in graph.external_data:  # it keeps its name, which is in the graph
        artefact.copy(name, folder / Path(name).name)


def why_keep_repository(folder: Path) -> str | None:
    """Say why a repository may not replace `folder`: it is not, or not only, an earlier one.

    None where it is an earlier repository of ours and holds nothing else.
    """
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
