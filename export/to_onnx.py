"""Writing a Stan as a folder of ONNX graphs, each of which is checked against the model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stan_infer
from stan_infer.artefacts.folder import Artefact, read_artefact, why_keep, write_manifest
from stan_infer.config import StanConfig
from stan_infer.engines.repeated_facts import preprocess_entry
from stan_infer.errors import InputError
from stan_infer.export.card import write_card
from stan_infer.export.class_head import class_scores, embed_classes
from stan_infer.export.fp16_ranges import Ranges
from stan_infer.export.golden import (
    random_clips,
    random_ids,
    split_cases,
    video_case,
    write_golden,
)
from stan_infer.export.options import MAX_BATCH, ExportOptions, Range, fixed_size
from stan_infer.export.parity import Case, case_sizes, check_graph, note_config, prove
from stan_infer.export.preprocess_graph import write_preprocess
from stan_infer.export.reference_graph import TextGraph, VideoGraph, write_reference
from stan_infer.export.score_graph import write_mug_score
from stan_infer.export.text_graph import write_text_graph
from stan_infer.export.video_graph import write_part, write_video_graph
from stan_infer.network.fold import fold_text, fold_video
from stan_infer.network.model import Stan
from stan_infer.network.torch_ops import encode_text, encode_video
from stan_infer.scores import mug_scores
from stan_infer.system.atomic import new_folder
from stan_infer.text.templates import read_templates
from stan_infer.text.tokenizer import text_rules
from stan_infer.text.vocabulary import write_vocabulary
from stan_infer.video.synthetic import moving_frames

MAX_TEXTS = 4096  # per call of the text tower
Say = Callable[[str], None]


def export_onnx(
    load: Callable[[], Stan],
    out: Path,
    options: ExportOptions,
    *,
    say: Say,
    then: Callable[[Path], None],
) -> Artefact:
    """Write the folder; arguments and errors are those of export_model.

    then: called with the finished folder, to add files, before it appears at `out`.
    """
    with new_folder(out, why_keep) as folder, torch.no_grad():
        work = _Export(folder, options, say)
        work.write(load)
        # The model is released by now, unless the caller holds it, so that it and a runtime's copy
        # of the weights are not in memory together.
        work.prove()
        work.finish()
        then(folder)
    return read_artefact(out, check_hashes=False)


@dataclasses.dataclass
class _Written:
    """A graph that is written and still has to be checked."""

    path: Path
    role: str
    precision: str
    dims: dict[str, Range]
    external: list[str]
    cases: list[Case]


class _Export:
    """One export into one folder; collects the content of the manifest."""

    model: Stan
    config: StanConfig

    def __init__(self, folder: Path, options: ExportOptions, say: Say) -> None:
        self.folder, self.options, self.say = folder, options, say
        self.written: list[_Written] = []
        self.graphs: list[dict[str, Any]] = []
        self.parity: list[dict[str, Any]] = []
        self.ranges: list[dict[str, Any]] = []
        self.classes: dict[str, np.ndarray] = {}
        self.labels: dict[str, Any] | None = None
        self.golden: dict[str, Any] | None = None

    def write(self, load: Callable[[], Stan]) -> None:
        """Write every file that needs the model, and compute the model's outputs for each case."""
        options = self.options
        self.model = copy.copy(load().float().eval())
        options.check(self.model.config)
        self.config = _sampled(self.model.config, options.frame_range(self.model.config))
        self.model.config = self.config
        if options.labels:
            self.labels = self._labels()
        if options.tower != "text":
            self._video()
            if options.split:
                self._split()
            self._preprocess()
        if self.has_text:
            self._text()
            if self.config.is_mug and options.tower == "both":
                self._score()
            if self.config.vocab_size == 49408:
                write_vocabulary(self.folder / "tokenizer.json")
        if options.tower != "text":
            self.say("writing golden data")
            classes = self.classes.get("embeddings") if options.head == "classify" else None
            self.golden = write_golden(self.folder / "golden.npz", self.model, options, classes)
        del self.model

    @property
    def has_text(self) -> bool:
        """Whether a text tower is written."""
        return self.config.has_text and self.options.tower != "video"

    def prove(self) -> None:
        """Check every graph, and compare its outputs with the model's."""
        for w in self.written:
            self.say(f"comparing {w.path.name} with the model")
            note_config(w.path, self.config)
            record = check_graph(w.path, self.options.opset, w.dims, w.precision)
            self.graphs.append(self._entry(w, record))
            if w.cases:
                self.parity.append(prove(w.path, w.cases, w.precision))

    def finish(self) -> None:
        """Write the card, and last the manifest."""
        manifest = {
            "tool": {"name": "stan_infer", "version": stan_infer.__version__},
            "model": self.config.to_dict(),
            "preprocess": preprocess_entry(self.config, self.options.input),
            "text": text_rules(self.config.context_length) if self.has_text else None,
            "graphs": self.graphs,
            "labels": self.labels,
            "golden": self.golden,
            "parity": self.parity,
            "ranges": self.ranges,
            **self.options.about,
        }
        if self.options.card:
            sizes = ((g, (self.folder / g["file"]).stat().st_size) for g in self.graphs)
            sized = {"graphs": [{**g, "bytes": size} for g, size in sizes]}
            write_card(self.folder / "README.md", manifest | sized)
        write_manifest(self.folder, manifest)

    def _labels(self) -> dict[str, Any]:
        self.say("embedding the labels")
        options = self.options
        templates = read_templates(options.template)
        self.classes = embed_classes(self.model, options.labels, templates)
        sentences = list(templates.sentences)
        entry = {"templates": sentences} if len(sentences) > 1 else {"template": sentences[0]}
        lines = "".join(f"{label.strip()}\n" for label in options.labels)
        (self.folder / "labels.txt").write_text(lines, encoding="utf-8")
        # numpy's stub takes any keyword for its own allow_pickle.
        np.savez(self.folder / "labels.npz", **self.classes)  # type: ignore[arg-type]
        return {
            "file": "labels.txt",
            "embeddings": "labels.npz",
            **entry,
            "count": len(options.labels),
        }

    def _video(self) -> None:
        config, options = self.config, self.options
        path = self.folder / "video.onnx"
        dims = {"batch": options.batch_range(), "frames": options.frame_range(config)}
        # The model runs first, so that its activations and the graph are not in memory together.
        self.say("running the model on the video tower's cases")
        cases = [self._video_case(size) for size in case_sizes(dims["batch"], dims["frames"])]
        self.say(f"writing the video tower ({options.graph} graph, {options.precision})")
        external = self._write_video(path, dims)
        self.written.append(_Written(path, "video", options.precision, dims, external, cases))

    def _write_video(self, path: Path, dims: dict[str, Range]) -> list[str]:
        config, options = self.config, self.options
        names = ["video", "video_embeds", "frame_embeds"]
        if options.graph == "reference":
            b = fixed_size(dims["batch"]) or 2
            t = fixed_size(dims["frames"]) or min(5, config.max_frames)
            example = random_clips(config, b, t, options.input, seed=0)
            # As wide as the time table allows, because a narrow range could exclude the example.
            limits = {
                "batch": (b, b) if fixed_size(dims["batch"]) else (1, MAX_BATCH),
                "frames": (t, t) if fixed_size(dims["frames"]) else (1, config.max_frames),
            }
            module = VideoGraph(self.model)
            return write_reference(module, path, example, limits, names, options.opset)
        if options.precision == "fp16":
            self._measure_ranges()
        weights = fold_video(self.model, input=options.input, on_demand=True)
        return write_video_graph(
            path,
            config,
            weights,
            dims=dims,
            input=options.input,
            precision=options.precision,
            opset=options.opset,
            classes=self.classes if options.head == "classify" else None,
        )

    def _split(self) -> None:
        config, options = self.config, self.options
        self.say(f"writing the video tower in two parts ({options.precision})")
        weights = fold_video(self.model, input=options.input, on_demand=True)
        limits = {"batch": options.batch_range(), "frames": options.frame_range(config)}
        most = {"frames": (1, limits["batch"][1] * limits["frames"][1])}
        run = VideoGraph(self.model)
        cases = split_cases(config, weights, limits, options.input, run)
        classes = self.classes if options.head == "classify" else None
        for role, dims in (("trunk", most), ("branch", limits)):
            path = self.folder / f"{role}.onnx"
            external = write_part(
                path,
                config,
                weights,
                role=role,
                dims=dims,
                precision=options.precision,
                opset=options.opset,
                classes=classes,
            )
            self.written.append(
                _Written(path, role, options.precision, dims, external, cases[role])
            )

    def _video_case(self, size: tuple[int, int]) -> Case:
        case = video_case(self.config, size, self.options.input, VideoGraph(self.model))
        if self.options.head == "classify":
            scores = class_scores(self.config, self.classes, **case.wanted)
            case.wanted["scores"] = scores
        return case

    def _measure_ranges(self) -> None:
        config, clips = self.config, self.options.clips
        inputs = f"{len(clips or [])} calibration clips"
        if not clips:
            inputs, t, side = "two synthetic clips", config.frames, config.image_size
            noise = random_clips(config, 1, t, "uint8", seed=0)
            clips = [noise, moving_frames(t, side, side)[None]]
        self.say(f"measuring ranges on {inputs}")
        # The clips are uint8 whatever the graph's input is: only the first linear differs.
        weights, ranges = fold_video(self.model), Ranges()
        for clip in clips:
            encode_video(weights, torch.from_numpy(clip), ranges)
        self.ranges.append({"tower": "video", **ranges.check_fp16(inputs)})

    def _text(self) -> None:
        config, options = self.config, self.options
        path = self.folder / "text.onnx"
        dims = {"batch": (1, MAX_TEXTS), "length": (2, config.context_positions)}
        self.say("running the model on the text tower's cases")
        module, cases = TextGraph(self.model), []
        for q, n in sorted({(1, config.context_length), (5, config.context_positions), (2, 3)}):
            ids = random_ids(config, q, n, seed=q)
            end, tokens = (x.numpy() for x in module(torch.from_numpy(ids)))
            wanted = {"text_embeds": end, "token_embeds": tokens}
            cases.append(Case((q, n), {"input_ids": ids}, wanted))
        self.say(f"writing the text tower ({options.graph} graph, {options.precision})")
        names = ["input_ids", "text_embeds", "token_embeds"]
        if options.graph == "reference":
            example = random_ids(config, 3, config.context_length, seed=0)
            external = write_reference(module, path, example, dims, names, options.opset)
        else:
            weights = fold_text(self.model, on_demand=True)
            if options.precision == "fp16":
                ranges = Ranges()
                for case in cases:
                    encode_text(weights, torch.from_numpy(case.feeds["input_ids"]).long(), ranges)
                self.ranges.append({"tower": "text", **ranges.check_fp16("random token ids")})
            external = write_text_graph(
                path, config, weights, precision=options.precision, opset=options.opset
            )
        self.written.append(_Written(path, "text", options.precision, dims, external, cases))

    def _score(self) -> None:
        config = self.config
        path = self.folder / "score.onnx"
        self.say("writing the Mug score")
        write_mug_score(
            path,
            embed_dim=config.embed_dim,
            mode=config.head,
            tau=config.mug_tau,
            opset=self.options.opset,
        )
        dims = {
            "texts": (1, MAX_TEXTS),
            "length": (2, config.context_positions),
            "videos": (1, MAX_TEXTS),
            "frames": (1, config.max_frames),
        }
        cases, rng = [], np.random.default_rng(0)
        for q, b in ((1, 1), (3, 2), (2, 5)):
            ids = random_ids(config, q, min(4 + q, config.context_positions), seed=q)
            feeds = {
                "token_embeds": rng.standard_normal((*ids.shape, config.embed_dim), np.float32),
                "input_ids": ids,
                "frame_embeds": rng.standard_normal((b, q + 1, config.embed_dim), np.float32),
            }
            scores = mug_scores(
                feeds["token_embeds"],
                ids != 0,
                feeds["frame_embeds"],
                mode=config.head,
                tau=config.mug_tau,
            )
            cases.append(Case((q, b), feeds, {"scores": scores}))
        self.written.append(_Written(path, "score", "fp32", dims, [], cases))

    def _preprocess(self) -> None:
        config, path = self.config, self.folder / "preprocess.onnx"
        self.say("writing the preprocessing")
        write_preprocess(
            path, short_side=config.short_side, crop=config.image_size, opset=self.options.opset
        )
        largest = 16384
        dims = {"n": (1, MAX_TEXTS), "height": (1, largest), "width": (1, largest)}
        self.written.append(_Written(path, "preprocess", "uint8", dims, [], []))

    def _entry(self, w: _Written, record: dict[str, Any]) -> dict[str, Any]:
        return {
            "file": w.path.name,
            "role": w.role,
            "precision": w.precision,
            "graph": self.options.graph if w.role in ("video", "text") else "fused",
            "dims": {k: list(v) for k, v in w.dims.items()},
            "external_data": w.external,
            "quant": None,
            **record,
        }


def _sampled(config: StanConfig, limits: Range) -> StanConfig:
    """The config with a number of sampled frames that the graph takes; a fixed T becomes it."""
    fixed = fixed_size(limits)
    if fixed is not None:
        return config.replace({"frames": fixed})
    if not limits[0] <= config.frames <= limits[1]:
        raise InputError(
            f"the range of frames, {limits[0]} to {limits[1]}, does not include the "
            f"{config.frames} frames that are sampled from a video: widen it, or give --set "
            "frames=N (settings={'frames': N})"
        )
    return config
