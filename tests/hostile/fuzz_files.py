"""Fuzz all that reads files: `python -m tests.hostile.fuzz_files --inputs 100000 --seed 0`.

Every input is a damaged copy of a small valid file, read by the product's own reader and used by
what consumes it; only StanError may come out. Input i of a seed is always the same: `--only i`
runs it alone, and shows what it raised. `--kind` keeps to one kind of file.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from stan_infer.artefacts.calibration_file import (
    calibration_of,
    digest,
    fp8_scales,
    preprocessing,
    read_calibration,
)
from stan_infer.artefacts.folder import read_artefact, why_keep, write_manifest
from stan_infer.benchmarking.page import _accuracy
from stan_infer.benchmarking.rows import compare_rows, read_json_lines
from stan_infer.checkpoints.own import read_config
from stan_infer.cli.export import plan_row
from stan_infer.cli.inspect import inspect
from stan_infer.config import parameter_shapes
from stan_infer.engines.open import open_session
from stan_infer.errors import StanError
from stan_infer.evaluation.datasets import read_names, read_task
from stan_infer.evaluation.feature_cache import FeatureCache
from stan_infer.export.export_model import export_model
from stan_infer.export.read_weights import read_classes, read_weights
from stan_infer.export.to_triton_server import MARKER, why_keep_repository, write_repository
from stan_infer.network.model import Stan, init_random
from stan_infer.quantisation.bound import Bound
from stan_infer.quantisation.source import check_runnable
from stan_infer.quantisation.verdict import _size
from stan_infer.system.outside_file import read_lines
from stan_infer.tensorrt_plans.build import profile_fits
from stan_infer.tensorrt_plans.known_faults import faults_of
from stan_infer.tensorrt_plans.options import PlanOptions, profiles_of
from stan_infer.tensorrt_plans.plan_file import (
    check_device,
    check_origin,
    check_version,
    new_plan,
    read_plan,
)
from stan_infer.text.labels import Labels, read_labels
from stan_infer.verification.folder_side import Folder
from stan_infer.video.find import locate_videos
from tests.conftest import tiny_config
from tests.hostile.fuzzer import Found, command_line, run_inputs
from tests.hostile.mutations import damage_bytes, damage_json, damage_lines

GRAPHS_OPENED = 20  # one folder of this many is also opened in a runtime
SIDECAR: dict[str, Any] = {
    "flavor": "tensorrt",
    "role": "text",
    "precision": "fp32",
    "onnx": "text.onnx",
    "trt_version": [10, 9, 0, 34],
    "built_on": {"name": "A GPU", "sm": "sm_89", "driver": "580.1"},
    "options": {"workspace_mib": None, "level": 3, "timing_cache": False},
    "hardware_compatibility": "NONE",
    "profiles": [{"input_ids": [[1, 2], [1, 12], [8, 20]]}, {"input_ids": [[1, 12]] * 3}],
    "io": [{"name": "input_ids", "mode": "input", "dtype": "int32", "shape": [-1, -1]}],
    "targets": [],
    "flags": [],
    "tf32": False,
    "layers": 100,
    "warnings": ["a warning"],
    "build_seconds": 1.5,
    "build_peak_mib": 100.0,
}
CALIBRATION: dict[str, Any] = {
    "schema": "1.0",
    "tool": {"name": "stan_infer", "version": "0.1.0"},
    "precision": "fp8",
    "method": "max",
    "seed": 0,
    "clips": 3,
    "tensors": dict.fromkeys(
        (f"video/trunk/layer{i}/mlp/fc1" for i in range(3)),
        {"absmax": 3.0, "amax_used": 2.5, "scale": 0.01, "smoothing": 0.0},
    ),
    "kept": ["video/trunk/layer2/mlp/fc1"],
    "sensitivity": [{"linear": "video/trunk/layer0/mlp/fc1", "error": 0.1, "saved_ms": 0.2}],
    "search": [{"kept": 1, "cosine": 0.99}],
    "verdict": {"is_met": True, "rows": []},
}
ANNOTATIONS: dict[str, tuple[str, ...]] = {
    "msrvtt": (
        'key,vid_key,video_id,sentence\nr0,m1,v1,a man talks\nr1,m2,v2,"a girl, slowly"\n',
        '{"videos": [{"video_id": "v1"}], "sentences": [{"caption": "a", "video_id": "v1"}]}',
        '{"v1": ["a man", "a woman"], "v2.mp4": "one"}',
    ),
    "didemo": ('[{"video": "a.mov", "description": "a dog", "times": [[0, 0]]}]', '{"a": ["b"]}'),
    "lsmdc": ("1004_Juno_00.00\t1\t2\t3\t4\tShe drinks.\n2\t1\t2\t3\t4\tHe sits.\n",),
    "msvd": ("# comment\n\nmv8_9psg_33_46 a bird is bathing\n-4w_5_15 a squirrel eats\n",),
    "kinetics400": (
        'label,youtube_id,time_start,time_end,split\nyoga,abc,84,94,val\n"a, b",x,20,30,val\n',
        "val/a.mp4 1\nval/b.mp4 0\n",
    ),
    "ssv2": ('[{"id": "74225", "template": "Spinning [something]"}]', "74225.webm,0\n2.webm,1\n"),
    "retrieval": (
        "video,text\na.mp4,one\na.mp4,two\n",
        'caption;x;path\n"one; two";1;a.mp4\n',
        '{"a.mp4": ["one", "two"]}',
        '{"v_1": {"sentences": ["one", "two"], "duration": 3}}',
        '{"video": "a.mp4", "caption": "one"}\n{"video": "b.mp4", "caption": "two"}\n',
    ),
    "recognition": (
        "label,video\nwalk,a.mp4\nrun,b.mp4\n",
        "a b.mp4;1\nc.mp4;0\n",
        'a.mp4,"a, b"\nc.mp4,run\n',
        '{"abc": {"annotations": {"label": "run", "segment": [1.0, 11.0]}}}',
    ),
}
ROW: dict[str, Any] = {
    "schema": "stan-infer/bench/1",
    **{"model": "m", "engine": "ort", "precision": "fp32", "device": "cpu", "batch": 1},
    **{"frames": 8, "threads": 1, "speedup": 2.0, "latency_ms_p50": 10.0, "max_rel_error": 1e-6},
}
EVAL: dict[str, Any] = {
    "schema": "stan-infer/eval/1",
    "session": {"engine": "ort", "precision": "fp32"},
    "figures": {"text_to_video": {"R@1": 46.9}},
}

Use = Callable[[bytes], Sequence[Callable[[], Any]]]  # a damaged file -> what to do with it

_GIVEN: Any = SimpleNamespace(params={"settings": None})  # a command's context, without options


@dataclasses.dataclass(frozen=True)
class Kind:
    """Seeds of one kind of file, how they are damaged, and what reads and uses them."""

    seeds: Sequence[bytes]
    damages: Sequence[Callable[[bytes, random.Random], bytes]]
    use: Use


class Unopened(Folder):
    """A folder whose graphs are not opened here: _artefact_uses does so, for one in many."""

    def _open(self, role: str) -> Any:
        return StanError("not opened")


class World:
    """An exported folder with everything that can be in one, and the kinds of files in it."""

    def __init__(self, place: Path) -> None:
        self.place, self.folder = place, place / "folder"
        self._write_folder()
        self._count = -1
        self._plan = self.folder / "engines" / "text.fp32.trt.plan"
        self._beside = self._plan.with_name(f"{self._plan.name}.json")
        changed = (self.folder / "manifest.json", self._beside, self.folder / "labels.npz")
        self._sound = {path: path.read_bytes() for path in changed}
        both = (damage_json, damage_json, damage_bytes)
        lines = (damage_lines, damage_lines, damage_bytes)
        manifest, calibration, labels = (
            (self.folder / name).read_bytes()
            for name in ("manifest.json", "calibration.json", "labels.npz")
        )
        rows = "\n".join(map(json.dumps, (ROW, EVAL))).encode()
        self.kinds = {
            "manifest": Kind([manifest], both, self._use_manifest),
            "sidecar": Kind([self._beside.read_bytes()], both, self._use_sidecar),
            "calibration": Kind([calibration], both, self._use_calibration),
            "rows": Kind([rows], (_damage_row, _damage_row, *lines), self._use_rows),
            "marker": Kind([self._marker()], both, self._use_marker),
            "config": Kind([json.dumps(tiny_config().to_dict()).encode()], both, self._use_config),
            "lines": Kind([b"a dog\na cat\n\nred cross\n"], lines, self._use_lines),
            "cache": Kind([self._part()], (damage_bytes,), self._use_cache),
            "npz": Kind([labels], (damage_bytes,), self._use_npz),
        }
        for name, texts in ANNOTATIONS.items():
            seeds = [text.encode() for text in texts]
            damages = (_damage_text, _damage_text, damage_lines, damage_bytes)
            self.kinds[f"annotation {name}"] = Kind(seeds, damages, self._use_annotation(name))
        for name, kind in self.kinds.items():  # what is sound is taken, and everything imported
            for data in kind.seeds:
                assert "accepted" in run_one(kind.use(data)), (name, data[:80])
        # Kinds with more content are drawn more often.
        self._shares = {"manifest": 12, "sidecar": 6, "calibration": 4}

    def choose(self, rng: random.Random, only: str | None) -> tuple[str, bytes]:
        """One damaged file, and its kind."""
        names = [n for n in self.kinds if only in (None, n, n.partition(" ")[0])]
        name = rng.choices(names, [self._shares.get(n, 1) for n in names])[0]
        kind = self.kinds[name]
        return name, rng.choice(kind.damages)(rng.choice(kind.seeds), rng)

    def _write_folder(self) -> None:
        config, folder = tiny_config(), self.folder
        self.checkpoint = self.place / "checkpoint.bin"
        self.checkpoint.write_bytes(b"weights")
        model = init_random(Stan(config), seed=1).eval().requires_grad_(False)
        source = {"file": "x.pth", "checkpoint_sha256": _hash(b"weights")}
        about = {"source": source, "licence": "MIT", "command": "stan-infer export x.pth"}
        export_model(model, folder, card=True, about=about)
        names = ["a dog", "a cat", "red cross"]
        (folder / "labels.txt").write_text("\n".join(names) + "\n")
        rows = np.random.default_rng(0).standard_normal((3, config.embed_dim)).astype(np.float32)
        np.savez(folder / "labels.npz", embeddings=rows)
        given = preprocessing(config)
        key = {"checkpoint_sha256": _hash(b"weights"), "preprocessing_sha256": digest(given)}
        record = CALIBRATION | {"key": key, "preprocessing": given}
        (folder / "calibration.json").write_text(json.dumps(record))
        manifest = json.loads((folder / "manifest.json").read_text())
        labels = {"file": "labels.txt", "embeddings": "labels.npz", "template": "{}", "count": 3}
        # Labels are of the folder; its graph has no class head.
        kept = {k: v for k, v in manifest.items() if k not in ("schema", "files")}
        write_manifest(folder, kept | {"labels": labels})
        (folder / "engines").mkdir()
        with new_plan(folder / "engines" / "text.fp32.trt.plan") as (temporary, sidecar):
            temporary.write_bytes(b"code" * 20)
            text = (folder / "manifest.json").read_bytes()
            sidecar |= SIDECAR | {
                "onnx_sha256": json.loads(text)["files"]["text.onnx"]["sha256"],
                "manifest_sha256": _hash(text),
            }

    def _marker(self) -> bytes:
        write_repository(read_artefact(self.folder), self.place / "repository")
        return (self.place / "repository" / MARKER).read_bytes()

    def _part(self) -> bytes:
        cache = FeatureCache(self.place / "seed", {"a": 1})
        for i in range(3):
            cache.put(f"video:{i}", np.ones((2, 4), np.float32))
        cache.flush()
        (part,) = (self.place / "seed").rglob("*.npz")
        return part.read_bytes()

    def _use_manifest(self, data: bytes) -> Sequence[Callable[[], Any]]:
        self._restore()
        (self.folder / "manifest.json").write_bytes(data)
        self._count += 1
        wanted = [*self._inspections(str(self.folder)), lambda: why_keep(self.folder)]
        return [*wanted, *self._artefact_uses(), *self._verify_uses()]

    def _inspections(self, source: str) -> list[Callable[[], Any]]:
        return [
            lambda: _shown(lambda: inspect(_GIVEN, source, json=False)),
            lambda: _shown(lambda: inspect(_GIVEN, source, json=True)),
        ]

    def _artefact_uses(self) -> list[Callable[[], Any]]:
        """What is done with a folder that was read; nothing where it is refused."""
        try:
            artefact = read_artefact(self.folder)
        except StanError:
            return [lambda: read_artefact(self.folder)]
        out = self.place / "triton"
        shutil.rmtree(out, ignore_errors=True)
        plan = read_plan(self._plan)
        found: list[Callable[[], Any]] = [
            lambda: write_repository(artefact, out),
            lambda: [profiles_of(artefact, g, PlanOptions()) for g in artefact.graphs],
            lambda: [check_origin(artefact, g, plan) for g in artefact.graphs],
            lambda: read_classes(artefact),
            lambda: check_runnable(artefact, Bound(min_cosine=0.5), "int8"),
            lambda: artefact.graph("video") and _size(artefact),
        ]
        if self._count % GRAPHS_OPENED == 0:

            def run() -> None:
                session = open_session(self.folder, "ort", threads=1)
                side = session.config.image_size
                session.describe()
                session.embed_video(np.zeros((1, 2, side, side, 3), np.uint8))

            found += [run, lambda: read_weights(artefact)]
        return found

    def _verify_uses(self) -> list[Callable[[], Any]]:
        try:
            folder = Unopened(self.folder, "ort")
        except StanError:
            return []
        pixels = np.zeros((1, 1, 2, 2, 3), np.uint8)
        return [
            *(lambda axis=axis: folder.limits(axis) for axis in ("frames", "batch", "length")),
            *(lambda s=s: folder.lacks(s) for s in ("decode", "text", "ids", "score")),
            folder.damage,
            folder.labels,
            folder.sampled,
            lambda: folder.indices(9, folder.sampled()),
            lambda: folder.prepare(pixels),
            lambda: [folder.graph_path(role) for role in ("video", "text", "preprocess")],
        ]

    def _use_sidecar(self, data: bytes) -> Sequence[Callable[[], Any]]:
        self._restore()
        self._beside.write_bytes(data)
        wanted = self._inspections(str(self._plan))
        try:
            plan = read_plan(self._plan)
        except StanError:
            return [*wanted, lambda: read_plan(self._plan)]
        artefact = read_artefact(self.folder, check_hashes=False)
        graph = artefact.graph("text")
        assert graph is not None
        out = self.place / "triton"
        shutil.rmtree(out, ignore_errors=True)
        return [
            *wanted,
            lambda: _shown(lambda: print(json.dumps(plan_row(plan)))),
            lambda: check_version(plan, (10, 9, 0, 34)),
            lambda: check_device(plan, "sm_89", "A GPU"),
            lambda: check_origin(artefact, graph, plan),
            lambda: plan.profile_of({"input_ids": (1, 12)}),
            lambda: [profile_fits(graph, p) for p in plan.profiles],
            plan.widest,
            plan.load,
            lambda: faults_of(plan),
            lambda: write_repository(artefact, out, backend="tensorrt"),
        ]

    def _restore(self) -> None:
        for path, data in self._sound.items():
            path.write_bytes(data)

    def _use_calibration(self, data: bytes) -> Sequence[Callable[[], Any]]:
        path = self.place / "calibration.json"
        path.write_bytes(data)
        given = (path, self.checkpoint, tiny_config())

        def scales() -> None:
            found = fp8_scales(*given)
            assert all(np.isfinite(s) and 0 < np.float32(s) < np.inf for s in found.values()), found

        return [
            lambda: read_calibration(path),
            scales,
            lambda: calibration_of(path, "int8", *given[1:]),
        ]

    def _use_rows(self, data: bytes) -> Sequence[Callable[[], Any]]:
        path = self.place / "rows.jsonl"
        path.write_bytes(data)
        return [
            lambda: _shown(
                lambda: print(compare_rows(read_json_lines(path, "bench", "bench"), [ROW], 0.1))
            ),
            # One row in five: each is drawn.
            lambda: _accuracy([ROW], read_json_lines(path, "eval", "eval")[: len(data) % 5 == 0]),
        ]

    def _use_marker(self, data: bytes) -> Sequence[Callable[[], Any]]:
        (self.place / "repository" / MARKER).write_bytes(data)
        return [lambda: why_keep_repository(self.place / "repository")]

    def _use_config(self, data: bytes) -> Sequence[Callable[[], Any]]:
        # A safetensors header holds text: what is no UTF-8 does not come that far.
        text = data.decode("utf-8", "replace")
        return [lambda: parameter_shapes(read_config(text))]

    def _use_lines(self, data: bytes) -> Sequence[Callable[[], Any]]:
        path, one = self.place / "lines.txt", self.place / "one.csv"
        path.write_bytes(data)
        one.write_text("video,label\na dog,a dog\nb,a cat\n")
        return [
            lambda: read_lines(path, "texts"),
            lambda: read_task("recognition", one, labels=read_labels(path)),
            lambda: read_labels(path, split_words=True),
            lambda: read_task("recognition", one, subset=read_names(path)),
        ]

    def _use_annotation(self, dataset: str) -> Use:
        def use(data: bytes) -> Sequence[Callable[[], Any]]:
            path, videos = self.place / "annotations", self.place / "videos"
            path.write_bytes(data)
            videos.mkdir(exist_ok=True)
            (videos / "a.mp4").touch()

            def read(**options: Any) -> None:
                task = read_task(dataset, path, **options)
                locate_videos(videos, task.videos)
                assert len(task.owners) == len(task.texts) and task.videos
                assert len(task.labels) == (len(task.videos) if task.classes else 0)
                assert all(0 <= label < len(task.classes) for label in task.labels)
                for text in (*task.videos, *task.texts, *task.classes):
                    text.encode()
                task.keep(range(1))

            return [
                read,
                lambda: read(labels=Labels((0, 1, 2, 3), ("yoga", "a, b", "walk", "run"))),
                lambda: read(subset=["a.mp4", "v1"]),
            ]

        return use

    def _use_cache(self, data: bytes) -> Sequence[Callable[[], Any]]:
        folder = self.place / "cache"
        shutil.rmtree(folder, ignore_errors=True)
        FeatureCache(folder, {"a": 1})
        (inside,) = folder.iterdir()
        (inside / "part.npz").write_bytes(data)

        def read() -> None:
            cache = FeatureCache(folder, {"a": 1})
            found = [x for i in range(3) if (x := cache.get(f"video:{i}", (2, 4))) is not None]
            if found:
                assert np.isfinite(np.stack(found)).all()

        return [read]

    def _use_npz(self, data: bytes) -> Sequence[Callable[[], Any]]:
        self._restore()
        (self.folder / "labels.npz").write_bytes(data)
        manifest = json.loads(self._sound[self.folder / "manifest.json"])
        manifest["files"]["labels.npz"] = {"bytes": len(data), "sha256": _hash(data)}
        for graph in manifest["graphs"]:  # else the classes are not read
            graph["outputs"].append({"name": "scores", "dtype": "float32", "shape": ["batch", 3]})
        (self.folder / "manifest.json").write_text(json.dumps(manifest))

        return [
            lambda: read_classes(read_artefact(self.folder)),
            lambda: Unopened(self.folder, "ort").labels(),
        ]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _damage_row(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    lines[i] = damage_json(lines[i], rng)
    return b"\n".join(lines)


def _damage_text(data: bytes, rng: random.Random) -> bytes:
    """JSON by its values, other text by its lines."""
    return (damage_json if data[:1] in b"{[" and b"}\n{" not in data else damage_lines)(data, rng)


def _shown(work: Callable[[], Any]) -> None:
    """Run what prints, into a terminal that takes no more than UTF-8."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        work()
    out.flush()


def run_one(uses: Sequence[Callable[[], Any]]) -> list[str]:
    """Do everything with one file; return the name of each one's StanError, or "accepted"."""
    outcomes = []
    for use in uses:
        outcomes.append("accepted")
        try:
            use()
        except StanError as e:
            text = str(e)
            if len(text) > 2000 or not text.isprintable():
                raise AssertionError(f"a message of {len(text)} characters: {text[:300]!r}") from e
            outcomes[-1] = type(e).__name__
    return outcomes


def fuzz(world: World, inputs: range, seed: int, kind: str | None = None) -> Found:
    def one(rng: random.Random) -> tuple[str, Callable[[], str]]:
        name, data = world.choose(rng, kind)
        return name, lambda: run_one(world.kinds[name].use(data))[0]

    return run_inputs(inputs, seed, one)


if __name__ == "__main__":
    logging.getLogger("stan_infer").setLevel(logging.ERROR)  # what is damaged is told otherwise
    sys.exit(command_line(__doc__, lambda folder, *given: fuzz(World(folder), *given)))
