"""An exported folder against its own golden data: does it compute here what it did at its export?

The golden data are inputs and what the model in fp32 made of them when the folder was written. They
lie in the folder and are covered by its hashes, so they show another machine, engine or version
that computes otherwise, or files that changed: whether the folder was right when it was written is
what comparing it with its checkpoint shows.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stan_infer.artefacts.calibration_record import Told
from stan_infer.artefacts.folder import MANIFEST
from stan_infer.artefacts.npz_file import Field, names_of, read_npz
from stan_infer.artefacts.precision import EIGHT_BITS, TOLERANCES
from stan_infer.checkpoints.hub import located
from stan_infer.checkpoints.weights_folder import is_exported
from stan_infer.engines.open import engine_named, graph_engines, open_session
from stan_infer.errors import InputError, MissingError
from stan_infer.system.result import Say
from stan_infer.verification.bound import recorded_bound
from stan_infer.verification.folder_side import Folder
from stan_infer.verification.labels import compare_labels
from stan_infer.verification.options import VerifyOptions
from stan_infer.verification.parts import parts_stage
from stan_infer.verification.side import Arrays
from stan_infer.verification.stage import ARITHMETIC, Stage
from stan_infer.verification.stored import StoredGraph
from stan_infer.verification.verify import LEVELS, described, record_of
from stan_infer.video.decode_worker import DecodeWorker
from stan_infer.video.spec import ClipSpec

if TYPE_CHECKING:
    from stan_infer.network.model import Stan

_FLOATS = ("video_embeds", "frame_embeds", "class_scores", "text_embeds", "token_embeds", "scores")
_FIELDS = {
    "clip": Field("uint8", ("n", "c", "c", 3)),
    "frames": Field("uint8", ("t", "h", "w", 3)),
    "pixels": Field("uint8", ("t", "s", "s", 3)),
    "video": Field("uint8 float32"),
    "input_ids": Field("int32", ("q", "l")),
    **{name: Field("float32") for name in _FLOATS},
}


def golden_record(folder: str | Path | Stan, o: VerifyOptions, say: Say) -> dict[str, Any]:
    """Compare what a folder computes with its golden data, stage by stage.

    Every stage gets the golden input, so that a fault shows in its own stage. Returns the record of
    verification.Verification, with the golden data as A.

    Raises InputError for what is no exported folder, or has no golden data, and for options that
    belong to two models; MissingError where the engine is not installed.
    """
    path = Path(located(folder)) if isinstance(folder, (str, Path)) else None
    if path is not None and not os.path.exists(path):
        raise InputError(f"no such folder: {path}; check the spelling")
    if path is None or not is_exported(path):
        name = folder if isinstance(folder, (str, Path)) else "a loaded model"
        raise InputError(
            f"{name} alone cannot be verified: only an exported folder has golden data. Give "
            "two models, the reference first: stan-infer verify CKPT DIR"
        )
    of_two: dict[str, object] = {"--videos": o.videos, "--texts": o.texts, "--engine-b": o.engine_b}
    of_two |= {"--bisect": o.bisect, "--frames": tuple(o.frames) != VerifyOptions.frames}
    of_two |= {"--weights" if k == "weights" else "--set": True for k in o.settings or ()}
    if options := ", ".join(name for name, value in of_two.items() if value):
        raise InputError(
            f"{options}: one folder is compared with its own golden data and takes no such option: "
            "leave it out, or give a second model"
        )
    engine = o.engine_a or "ort"
    engine_named(engine)
    if engine not in graph_engines():
        raise InputError(
            f"engine {engine} opens no exported folder by itself: give one of "
            f"{', '.join(graph_engines())}"
        )
    say(f"opening {folder}")
    side = Folder(path, engine)
    files = _files(side)
    stages = [files] if files.failed else [files, *_Golden(side, o.tolerance, say).run()]
    told = {"kind": "golden data", "name": "its golden data", "engine": "eager"}
    return record_of(told | {"precision": "fp32"}, described(side), stages)


def _files(side: Folder) -> Stage:
    """Whether the folder is whole, and all that `run` would refuse; nothing of it ran so far."""
    stage = Stage("files")
    stage.reference = "hashes in its own manifest.json; what a session refuses"
    stage.count = 1
    if wrong := side.damage():
        stage.fail("the folder", "; ".join(wrong))
        return stage
    with stage.catch("the folder"):
        open_session(side.name, side.engine).close()
    for role in ("video", "text"):
        claimed, path = side.claims(role).precision, side.graph_path(role)
        stored = StoredGraph(path).precision if path is not None else claimed
        if stored != claimed:
            stage.fail(role, f"its graph is in {stored}, {MANIFEST} says {claimed}")
    return stage


class _Golden:
    """A folder's golden arrays, and the stages that they reach."""

    def __init__(self, side: Folder, tolerance: float | None, say: Say) -> None:
        self._side, self._given, self._say = side, tolerance, say
        self._texts, file = side.golden()
        self._wanted = _arrays(file)
        self._made: np.ndarray | None = None  # the video tower's embeddings [B, E]

    def run(self) -> list[Stage]:
        """Run every stage that the folder has golden data for."""
        steps = {
            "decode": self._decode,
            "resize": self._resize,
            "ids": self._ids,
            "video tower": self._video,
            "text tower": self._text,
            "score": self._score,
            "labels": self._labels,
        }
        stages = []
        for name, step in steps.items():
            self._say(name)
            stage = Stage(name, self._tolerance(name))
            stage.reference = "golden data"
            with stage.catch("the golden data"):
                step(stage)
            stages.append(stage)
            if name == "video tower" and self._side.precision in EIGHT_BITS:
                stages.append(self._bound(stage))
            if name == "video tower" and (parts := parts_stage(self._side, stage.tolerance)):
                stages.append(parts)
            if name == "video tower" and (others := self._other_frames()) is not None:
                stages.append(others)
        return stages

    def _tolerance(self, name: str) -> float:
        fixed = {"decode": 0.0, "ids": 0.0, "resize": LEVELS / 255}
        if name in fixed or self._given is not None:
            return fixed.get(name, self._given or 0.0)
        if name == "score":
            return ARITHMETIC
        precision = self._side.precision
        if name == "text tower" and precision in EIGHT_BITS:
            precision = "fp32"  # no text tower is in 8 bits
        most = TOLERANCES.get(precision, TOLERANCES["fp32"])
        # calibrate has measured what 8 bits cost on these clips, and writes twice of that.
        return min(most, self._side.golden_tolerance) if precision in EIGHT_BITS else most

    def _has(self, stage: Stage, step: str, *names: str) -> bool:
        """Whether the folder has this step; golden arrays for it are then there, or it fails."""
        if reason := self._side.lacks(step):
            stage.absent = f"not compared: the folder has {reason}"
            return False
        if absent := [name for name in names if name not in self._wanted]:
            raise InputError(f"there is no golden {absent[0]}, which every export writes")
        return True

    def _decode(self, stage: Stage) -> None:
        if not self._has(stage, "decode"):
            return
        clip = self._side.golden_clip()
        if clip is None and "clip" not in self._wanted:
            stage.absent = "not compared: the folder has no golden clip; export it again for one"
            return
        if clip is None:
            raise InputError(f"{MANIFEST} has no golden.clip, but there are golden frames of one")
        self._has(stage, "decode", "clip")
        wanted, t = self._wanted["clip"], self._side.sampled()
        side = wanted.shape[1]  # as they are: neither resized nor cropped
        spec = ClipSpec(frames=t, short_side=side, crop=side, decoder="pyav")
        try:
            with DecodeWorker() as worker:
                made = worker.read(clip, spec).pixels
        except MissingError as e:
            stage.absent = f"not compared: {e}"
            return
        stage.compare(f"{t} frames of {clip.name}", (wanted, made), 255)

    def _resize(self, stage: Stage) -> None:
        if self._has(stage, "resize", "frames", "pixels"):
            made = self._side.pixels(list(self._wanted["frames"]))
            stage.compare("frames", (self._wanted["pixels"], made), 255)

    def _ids(self, stage: Stage) -> None:
        if self._has(stage, "ids", "input_ids"):
            if not self._texts:
                raise InputError(f"{MANIFEST} has no golden.texts, which every export writes")
            made = self._side.ids(self._texts)
            stage.compare("all texts", (self._wanted["input_ids"], made), 1)

    def _video(self, stage: Stage) -> None:
        if self._has(stage, "video", "video", "video_embeds", "frame_embeds"):
            made = self._side.video(self._wanted["video"])
            self._compare(stage, made, "video_embeds", "frame_embeds")
            self._made = made["video_embeds"]

    def _other_frames(self) -> Stage | None:
        """Says which numbers of frames the golden clips do not reach; None where there are none."""
        if self._side.lacks("video") or "frame_embeds" not in self._wanted:
            return None
        frames = self._wanted["frame_embeds"].shape[1]
        low, high = self._side.limits("frames")
        if low == high:
            return None
        stage = Stage("other frames")
        stage.absent = (
            f"not compared: the golden clips have {frames} frames, the graph takes {low} to "
            f"{high}; its rows for later frames have a hash and were not run"
        )
        return stage

    def _text(self, stage: Stage) -> None:
        if self._has(stage, "text", "input_ids", "text_embeds", "token_embeds"):
            made = self._side.text(self._wanted["input_ids"])
            self._compare(stage, made, "text_embeds", "token_embeds")

    def _score(self, stage: Stage) -> None:
        names = ("scores", "input_ids", "text_embeds", "token_embeds", "video_embeds")
        if self._has(stage, "score", *names, "frame_embeds"):
            w, config = self._wanted, self._side.config
            made = self._side.score(w, w["input_ids"], w) * config.temperature
            stage.compare("the texts with the clips", (w["scores"], made))

    def _labels(self, stage: Stage) -> None:
        clips = {"golden clip": self._wanted["video"][0]} if "video" in self._wanted else {}
        one = self._side.limits("batch")[0] == 1
        compare_labels(
            stage, [self._side], clips if one else {}, lambda clip, side: clip, lambda text: None
        )
        made = {} if stage.absent else self._side.class_outputs(self._wanted["video"])
        if made and self._has(stage, "video", "class_scores"):
            stage.compare("class scores", (self._wanted["class_scores"], made["scores"]))

    def _compare(self, stage: Stage, made: Arrays, *names: str) -> None:
        for name in names:
            stage.compare(name, (self._wanted[name], made[name]))

    def _bound(self, video: Stage) -> Stage:
        """8 bits held to the cosine of their calibration, where the golden clips keep it.

        They are no clips like those of the calibration: below the bound they show nothing.
        """
        stage = Stage("bound")
        stage.has_errors = False
        record = self._side.calibration()
        bound: tuple[float, str] | str = "there is no calibration.json"
        if record is not None:
            bound = recorded_bound(cast(Told, record), self._side.engine)
        if isinstance(bound, str) or self._made is None or video.failed:
            why = bound if isinstance(bound, str) else "the video tower has no golden result"
            stage.absent = f"not compared: {why}"
            return stage
        least, words = bound
        pairs = zip(self._wanted["video_embeds"], self._made, strict=True)
        cosines = [_cosine(a, b) for a, b in pairs]
        stage.reference = f"golden data: a cosine of at least {least:.5g} ({words})"
        stage.count, stage.cosine = len(cosines), min(cosines)
        if not stage.cosine >= least:
            stage.absent = (
                f"not compared: a cosine of {stage.cosine:.6f} on clips unlike those of the "
                "calibration: compare it with the fp32 folder (stan-infer verify FP32 THIS)"
            )
        return stage


def _arrays(file: Path) -> Arrays:
    """The golden arrays that a file has; one may be missing, none may be of another form."""
    there = names_of(file)
    return read_npz(file, {k: v for k, v in _FIELDS.items() if k in there})


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x.astype(np.float64) for x in (a, b))
    with np.errstate(all="ignore"):
        return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
