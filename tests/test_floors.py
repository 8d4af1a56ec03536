"""Imports go downward only, and files stay short (CONTRIBUTING.md, "The floors")."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT

FLOORS = [
    {"names", "errors", "installing", "config", "flops", "privacy", "clip_licence"},
    {
        "tokenizer",
        "video",
        "decoders",
        "decode_worker",
        "machine",
        "artefact",
        "cuda_driver",
        "retrieval",
        "atomic",
        "temporary",
        "earlier_result",
        "cache_folder",
        "tensorrt_faults",
        "plan_file",
        "tensorrt_api",
    }
    | {"torch_zip", "torch_pickle", "torch_file", "trainer_hints", "layouts", "kernels"}
    | {"onnx_file", "resize", "synthetic", "metrics", "annotations", "locate", "feature_cache"}
    | {"timings", "clock", "plots", "json_lines", "histogram", "sensitivity_plot"}
    | {"calibration_file", "calibration_record", "json_file", "manifest", "plan_sidecar"}
    | {
        "stored_zip",
        "npz_file",
        "protobuf",
        "signals",
        "onnx_operations",
        "onnx_sizes",
        "graph_source",
    },
    {"weights_file", "clip_source", "checkpoint", "layers", "model"},
    {"fold", "fused", "torch_ops", "kernel_ops", "kernel_weights"}
    | {"quantise", "quant_plan", "observe", "replay", "smooth", "collect_ranges"},
    {"engines", "export"},
    {"embed", "bench", "verify", "verify_sources", "verify_folder", "verify_stage"}
    | {"verify_plan", "bench_plans"}
    | {"verify_inputs", "bisect_graph", "evaluate", "engine_trials", "decoder_trial"}
    | {"calibrate", "bound_search", "sensitivity", "verdict"}
    | {"ceiling", "bench_lanes", "bench_memory", "bench_stages", "bench_compare", "bench_page"},
    {"report", "cli"},
]
TOP = {"__init__", "__main__"}  # the package's face: may name everything
MAX_LINES = 400


def modules() -> dict[str, list]:
    found: dict[str, list] = {}
    for folder in ("stan_infer", "stan_infer/cli", "stan_infer/engines", "kernels", "export"):
        for path in sorted((ROOT / folder).glob("*.py")):
            name = path.stem if folder == "stan_infer" else folder.split("/")[-1]
            found.setdefault(name, []).append(path)
    return found


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imports(path, top_level_only: bool):
    tree = ast.parse(path.read_text())
    guarded = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for n in ast.walk(block)
    }
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom):
            if node.module == "stan_infer":
                yield from (f"stan_infer.{a.name}" for a in node.names)
            elif node.module:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


@pytest.mark.parametrize("name", sorted(set(modules()) - TOP))
def test_imports_go_downward(name):
    for path in modules()[name]:
        for imported in imports(path, top_level_only=False):
            parts = imported.split(".")
            if parts[0] != "stan_infer" or len(parts) < 2 or parts[1] in (name, "__version__"):
                continue
            assert floor(parts[1]) <= floor(name), f"{path.name} imports {imported} from above"


def test_no_circles():
    graph = {
        name: {
            i.split(".")[1]
            for path in paths
            for i in imports(path, top_level_only=True)
            if i.startswith("stan_infer.") and i.split(".")[1] != name
        }
        for name, paths in modules().items()
        if name not in TOP
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for below in graph.get(name, ()):
                visit(below, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_light_files_import_nothing_heavy():
    heavy = {"torch", "onnx", "onnxruntime", "cv2", "av", "decord", "tokenizers", "open_clip"}
    light = FLOORS[0] | (FLOORS[1] - {"kernels"}) | {"report", "cli", "embed", "evaluate"}
    light |= {n for n in FLOORS[5] if n.startswith("bench")} | {"ceiling"}
    light |= {"weights_file", "clip_source", "checkpoint", "__init__"}
    for name in light & set(modules()):
        for path in modules()[name]:
            for imported in imports(path, top_level_only=True):
                assert imported.split(".")[0] not in heavy, f"{path.name} imports {imported}"


def test_file_length():
    for paths in modules().values():
        for path in paths:
            lines = len(path.read_text().splitlines())
            assert lines <= MAX_LINES, f"{path.name} has {lines} lines"
