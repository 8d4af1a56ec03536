"""Evaluate a model on a data set's annotation file and a folder of videos: `stan-infer eval`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stan_infer.artefacts.folder import sha256
from stan_infer.checkpoints.weights_folder import is_exported
from stan_infer.config import StanConfig
from stan_infer.engines.opened import Source, opened, path_of
from stan_infer.engines.session import Session
from stan_infer.errors import InputError, check_whole, check_word
from stan_infer.evaluation import evaluate as evaluation
from stan_infer.evaluation.compare import compared, read_other
from stan_infer.evaluation.datasets import DATASETS, DataSet, read_names, read_task
from stan_infer.evaluation.evaluate import Evaluation, Protocol
from stan_infer.evaluation.feature_cache import FeatureCache, check_cache
from stan_infer.evaluation.model_evaluation import ModelEvaluation
from stan_infer.evaluation.page import copies_sentence, worst_videos
from stan_infer.evaluation.result_folder import check_results, write_results
from stan_infer.evaluation.task import Task
from stan_infer.library.model_files import model_hashes
from stan_infer.library.readings import EmbedOptions
from stan_infer.library.thumbnails import thumbnails
from stan_infer.system.atomic import check_outside, files_of
from stan_infer.system.outside_file import odd_name
from stan_infer.system.result import Progress, Say, divided, no_progress, silent
from stan_infer.text.labels import read_labels
from stan_infer.text.templates import PLAIN, read_templates
from stan_infer.video.copies import copies
from stan_infer.video.find import locate_videos
from stan_infer.video.spec import MAX_FRAMES


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of evaluate.

    labels: a file of class names by number; split_words: write "brush_hair" as words. subset: a
    file of the videos to keep (a split). template: texts of a class, see Protocol. frames,
    text_length: T and tokens per text, by default the data set's, then the model's. views: clips x
    crops per video, whose probabilities are averaged, by default the paper's. ties: "expected" or
    "authors". dual_softmax: multiply scores by a softmax over all queries. truncation: "keep-eot"
    or "authors". allow_missing: leave out videos that are not there. cache: a folder that keeps
    features, so that a stopped run goes on. out: a folder to write, see result_folder. compare: the
    record of another evaluation, or the folder that it wrote. decoder: see read_clip.
    """

    labels: str | Path | None = None
    split_words: bool = False
    subset: str | Path | None = None
    template: str | Sequence[str] = PLAIN
    frames: int | None = None
    text_length: int | None = None
    views: str | None = None
    ties: str = "expected"
    dual_softmax: bool = False
    truncation: str = "keep-eot"
    allow_missing: bool = False
    cache: str | Path | None = None
    out: str | Path | None = None
    compare: str | Path | None = None
    decoder: str = "auto"

    def __post_init__(self) -> None:
        """Refuse options that mean nothing."""
        if self.split_words and self.labels is None:
            raise InputError("--split-words changes the names of --labels; give --labels FILE")
        if self.frames is not None:
            check_whole("frames", self.frames, 1, MAX_FRAMES)
        if self.text_length is not None:
            check_whole("text_length", self.text_length, 3)
        self.counts  # noqa: B018 (refuses other words)

    @property
    def counts(self) -> tuple[int, int] | None:
        """The views as (clips, crops); None: the data set's."""
        if self.views is None:
            return None
        match = re.fullmatch(r"([0-9]{1,3})x([0-9]{1,3})", self.views)
        if not match:
            raise InputError(f"--views {self.views!r} is not CLIPSxCROPS, as in --views 1x3")
        return int(match[1]), int(match[2])


def evaluate(
    source: Source,
    dataset: str,
    annotations: str | Path,
    videos: str | Path,
    *,
    say: Say = silent,
    progress: Progress = no_progress,
    **options: Any,
) -> ModelEvaluation:
    """Evaluate retrieval (R@1/5/10, MdR, MnR) or recognition (top-1/5) as the paper does.

    Args:
        source: a checkpoint, an exported folder, a plan or an open session.
        dataset: "msrvtt", "didemo", "lsmdc", "msvd", "kinetics400", "ssv2"; or "retrieval",
            "recognition": a CSV with the columns video,text or video,label.
        annotations: the data set's own annotation file.
        videos: the folder that holds the videos, at any depth.
        say: called with a sentence for each video that fails, and about the data.
        progress: called with a title and the number of videos; a context manager that gives a
            function, which is called after each.
        options: the fields of EvaluationOptions: labels, split_words, subset, template, frames,
            text_length, views, ties, dual_softmax, truncation, allow_missing, cache, out, compare,
            decoder; batch, workers, timeout_s; and those of open_session.

    Returns:
        ModelEvaluation: figures with their intervals, and the protocol.

    Raises:
        InputError: wrong files or options, videos that are missing, none that can be read.
        MissingError: a package or device is not here.

    Example:
        >>> import pathlib, stan_infer as si
        >>> rows = "video,label\\ngreen_bar_grows,a bar grows\\ncyan_bar_blinks,a bar blinks\\n"
        >>> _ = pathlib.Path("labels.csv").write_text(rows)
        >>> model, clips = "examples/motion/motion.safetensors", "examples/motion/clips"
        >>> found = si.evaluate(model, "recognition", "labels.csv", clips, workers=1)
        >>> found.figures["videos"]["top-1"]
        100.0
    """
    own, rest = divided(EvaluationOptions, options)
    how, words = divided(EmbedOptions, rest)
    check_word("data set", str(dataset), DATASETS)
    work = _Work(source, dataset, Path(annotations), Path(videos), own, how, say, progress)
    return work.run(words)


@dataclasses.dataclass(frozen=True)
class _Work:
    source: Source
    dataset: str
    annotations: Path
    videos: Path
    own: EvaluationOptions
    how: EmbedOptions
    say: Say
    progress: Progress

    def run(self, words: dict[str, Any]) -> ModelEvaluation:
        """Find the videos, open the model, evaluate; words: for open_session."""
        own, name, preset = self.own, path_of(self.source), DATASETS[self.dataset]
        sources = self._check(name, words)
        other = None if own.compare is None else read_other(Path(own.compare))
        task, found, missing = _located(self.dataset, self.annotations, self.videos, own)
        if task.is_retrieval and read_templates(own.template) != read_templates(PLAIN):
            raise InputError(
                "--template is of classes; the texts of retrieval are taken as they are"
            )
        split = preset.split(task)
        _tell_twins(task.videos, found, self.say)
        task = task.keep([i for i, path in enumerate(found) if path is not None])
        paths = [path for path in found if path is not None]
        if other is not None:
            other.check(task)
        hashes = {} if name is None else model_hashes(name)
        with opened(self.source, words, yielding=True) as session:
            ran, config = session.describe(), session.config
            kept = None if own.cache is None else open_cache(own.cache, name, session)
            result = self._evaluated(session, task, paths, kept)
        views = result.facts["views"]
        read = (p for v, p in zip(task.videos, paths, strict=True) if v not in result.failed)
        copied = len(copies(read))
        facts = {
            "data set": self.dataset,
            "split": _split(split, own.subset, len(found), len(paths) - len(result.failed)),
            "annotations": self.annotations.name,
            "annotations sha256": sha256(self.annotations),
            "settings from": _settings_from(preset, own, config),
            **result.facts,
            **({"copies": copied} if copied else {}),
            "views from": "--views" if own.views else "one view" if views == "1x1" else "the paper",
            "missing": len(missing),
            "unreadable": len(result.failed),
        }
        if remark := copies_sentence(facts):
            self.say(remark)
        same = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        whole = ModelEvaluation(
            **{**same, "facts": facts},
            missing=tuple(missing),
            model=name or "a loaded model",
            model_sha256=hashes,
            session=ran,
            comparison=None if other is None else compared(result.answers, facts, other),
        )
        if own.out is not None:
            self._write(Path(own.out), whole, dict(zip(task.videos, paths, strict=True)), sources)
        return whole

    def _check(self, name: str | None, words: dict[str, Any]) -> list[Path]:
        """Refuse places that cannot be written, before the work; return the files that are read.

        Results may lie beside the videos: a folder is replaced only if we wrote all that is in it.
        """
        own = self.own
        model = list(files_of(name)) if name else []
        read = [self.annotations, own.labels, own.subset, own.compare, words.get("calibration")]
        sources = [*model, *(Path(p) for p in read if p is not None)]
        if own.cache is not None:
            check_cache(Path(own.cache), model)
        if own.out is not None:
            check_results(Path(own.out), sources=sources)
            if own.cache is not None:
                check_outside(Path(own.cache), Path(own.out), "--out")
        return sources

    def _write(
        self, out: Path, result: ModelEvaluation, files: dict[str, Path], sources: list[Path]
    ) -> None:
        """Write the folder of `out`, with pictures of the videos of the worst questions."""
        names = [result.answers.task.videos[i] for i in worst_videos(result.answers)]
        with self.progress("drawing thumbnails", len(names)) as step:
            found = thumbnails([files[n] for n in names], self.own.decoder, self.how, step)
        pictures = {n: found[files[n]] for n in names if files[n] in found}
        title = f"stan-infer eval: {Path(result.model).name} on {self.dataset}"
        write_results(out, title, result.to_dict(), result.answers, pictures, sources=sources)

    def _evaluated(
        self, session: Session, task: Task, paths: Sequence[Path], kept: FeatureCache | None
    ) -> Evaluation:
        own, preset = self.own, DATASETS[self.dataset]
        protocol = Protocol(
            task_config(session.config, preset, own.frames, own.text_length),
            views=own.counts or preset.views,
            decoder=own.decoder,
            truncation=own.truncation,
            template=own.template,
            ties=own.ties,
            dual_softmax=own.dual_softmax,
        )
        with self.progress("evaluating", len(paths)) as step:

            def on_video(error: str | None) -> None:
                step()
                if error:
                    self.say(f"error: {error}")

            try:
                return evaluation.evaluate(
                    session, task, paths, protocol, self.how, cache=kept, on_video=on_video
                )
            finally:
                if kept is not None:
                    kept.flush()


def _located(
    dataset: str, annotations: Path, videos: Path, options: EvaluationOptions
) -> tuple[Task, list[Path | None], list[str]]:
    """The task, the file of each of its videos, and the names that have none."""
    labels = None
    if options.labels is not None:
        labels = read_labels(Path(options.labels), split_words=options.split_words)
    subset = None if options.subset is None else read_names(Path(options.subset))
    task = read_task(dataset, annotations, labels=labels, subset=subset)
    if not videos.is_dir():
        raise InputError(
            odd_name(videos) or f"--videos {videos} is not a folder; give the folder of the videos"
        )
    found = locate_videos(videos, task.videos)
    missing = [name for name, path in zip(task.videos, found, strict=True) if path is None]
    if missing and not options.allow_missing:
        raise InputError(
            f"{len(missing)} of {len(found)} videos of {annotations} are not in {videos}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; add them, or leave "
            "them out with --allow-missing"
        )
    if len(missing) == len(found):
        raise InputError(
            f"no video of {annotations} is in {videos}; its files need the names that the "
            "annotations have"
        )
    return task, found, missing


def _split(name: str, subset: str | Path | None, videos: int, read: int) -> str:
    """What was evaluated: the split, the list that chose it, and whether all of it was there."""
    chosen = "" if subset is None else f", those of {Path(subset).name}"
    return name + chosen + (f", incomplete: {read} of {videos}" if read < videos else "")


def _tell_twins(names: Sequence[str], found: Sequence[Path | None], say: Say) -> None:
    """Say which names of the annotations mean the same file: its video is there twice."""
    first: dict[str, str] = {}
    twins = []
    for name, path in zip(names, found, strict=True):
        if path is not None:
            same = first.setdefault(os.path.realpath(path), name)
            twins += [f"{same} and {name} are {path.name}"] if same != name else []
    if twins:
        say(
            f"{len(twins)} videos are there under two names and count twice: {'; '.join(twins[:3])}"
        )


def _settings_from(preset: DataSet, own: EvaluationOptions, config: StanConfig) -> str:
    """Whose settings they are, and which options changed what. config: the model's."""
    usual, used = (
        task_config(config, preset, *given)
        for given in ((None, None), (own.frames, own.text_length))
    )
    pairs = {
        "--frames": (used.frames, usual.frames),
        "--text-length": (used.context_length, usual.context_length),
    }
    changed = [f"{o} {new} in place of {old}" for o, (new, old) in pairs.items() if new != old]
    return "; ".join([preset.settings_from, *changed])


def task_config(
    config: StanConfig, preset: DataSet, frames: int | None, text_length: int | None
) -> StanConfig:
    """The model's config with the settings of the data set, or those that were given."""
    t = preset.mug_frames if config.is_mug and preset.mug_frames else preset.frames
    side = config.short_side if preset.resize is None else round(config.image_size * preset.resize)
    return dataclasses.replace(
        config,
        frames=frames or t or config.frames,
        context_length=text_length or preset.context_length or config.context_length,
        short_side=side,
    )


def open_cache(folder: str | Path, source: str | None, session: Session) -> FeatureCache:
    """Open the kept features of a source, which the session runs."""
    if source is None:
        raise InputError("a cache belongs to a file of weights: give the checkpoint or the folder")
    model = " ".join(model_hashes(source).values()) or source
    weights = (session.options.get("settings") or {}).get("weights")
    model += f" {weights}" if weights and not is_exported(source) else ""
    # The number of threads differs from run to run and changes no feature.
    ran = {k: v for k, v in session.describe().items() if k != "threads"}
    key = {"model": model, "config": session.config.to_dict(), "session": ran}
    return FeatureCache(Path(folder), key)
