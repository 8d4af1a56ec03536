"""Compare two models from video bytes to rank: each stage on the same input, then end to end.

A is the reference. In each stage both sides get what A made in the stage before, so that a fault
shows in its own stage; only in the last one, rank, each side takes its own results all the way. A
difference raises nothing: it is a row of the result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.artefacts.precision import EIGHT_BITS, TOLERANCES
from stan_infer.errors import InputError, first_reasons
from stan_infer.system.temporary import temporary_folder
from stan_infer.verification import inputs
from stan_infer.verification.graphs import Graphs
from stan_infer.verification.labels import compare_labels
from stan_infer.verification.open import open_side
from stan_infer.verification.options import VerifyOptions
from stan_infer.verification.parts import parts_stage
from stan_infer.verification.rank import compare_ranks
from stan_infer.verification.side import FLOAT, Arrays, Side, decode, to_input, tower_of
from stan_infer.verification.stage import ARITHMETIC, Stage
from stan_infer.video.synthetic import moving_frames

if TYPE_CHECKING:
    from stan_infer.network.model import Stan

_STORED = ("weights", "files")  # stages that compare what is stored, and run nothing
LEVELS = 1  # of 255, of resized pixels: another implementation may round a half the other way


def comparison_record(
    a: str | Path | Stan, b: str | Path | Stan, o: VerifyOptions, say: Callable[[str], None]
) -> dict[str, Any]:
    """Compare B with the reference A, stage by stage: the record of verification.Verification."""
    say("opening both sides")
    pair = open_side(a, o.engine_a, o.settings), open_side(b, o.engine_b, o.settings)
    if o.settings and not any(side.kind == "checkpoint" for side in pair):
        raise InputError("settings belong to a checkpoint, and neither side is one: leave them out")
    work = _Comparison(pair, o, say)
    with temporary_folder("the videos that are made to compare") as folder:
        work.run(o.videos, folder)
    record = record_of(described(work.a), described(work.b), work.stages)
    record["failures"] = [{"video": v, "error": e} for v, e in work.failed.items()]
    record["bisect"] = work.blocks() if o.bisect else {}
    record["known_faults"] = [fault for side in pair for fault in side.known_faults()]
    return record


def described(side: Side) -> dict[str, Any]:
    """Kind, name, engine and precision of a side."""
    return {k: getattr(side, k) for k in ("kind", "name", "engine", "precision")}


def record_of(a: dict[str, Any], b: dict[str, Any], stages: Sequence[Stage]) -> dict[str, Any]:
    """What the stages say together; a, b: kind, name, engine and precision of each side."""
    rows = [s.row() for s in stages]
    failed = [r["stage"] for r in rows if r["pass"] is False]
    # Files and weights may differ and change no number: a stage whose numbers differ goes first.
    first = min(failed, key=lambda n: _STORED.index(n) + 1 if n in _STORED else 0, default=None)
    compared = any(r["pass"] for r in rows if r["stage"] != "files")
    return {
        "a": a,
        "b": b,
        "pass": compared and not failed,
        "first_failed": first,
        "stages": rows,
        "failures": [],
        "not_compared": [r["stage"] for r in rows if r["pass"] is None],
        "bisect": {},
        "known_faults": [],
    }


class _Comparison:
    """The two sides, the stages, and what A made so far."""

    def __init__(
        self, pair: tuple[Side, Side], options: VerifyOptions, say: Callable[[str], None]
    ) -> None:
        self.is_8_bits = any(s.precision in EIGHT_BITS for s in pair)
        coarse = max(TOLERANCES.get(s.precision, TOLERANCES["fp32"]) for s in pair)
        tolerance = options.tolerance
        self.pair, self.a, self.b, self.say = pair, *pair, say
        self.texts = list(options.texts or inputs.TEXTS)
        self.frames = sorted(set(options.frames))
        self.tolerance = coarse if tolerance is None else tolerance
        self.given_tolerance = tolerance
        self.config = next((s.config for s in pair if s.config), None)
        self.short_side = self.config.short_side if self.config else 224
        names = ("files", "decode", "resize", "input", "ids", "video tower", "text tower")
        bound = ["bound"] if self.is_8_bits else []
        self.stages = [Stage(n) for n in (*names, "weights", *bound, "score", "labels", "rank")]
        by = self.by = {s.name: s for s in self.stages}
        by["resize"].tolerance, by["input"].tolerance = LEVELS / 255, ARITHMETIC
        by["video tower"].tolerance = by["labels"].tolerance = self.tolerance
        text = TOLERANCES["fp32"] if self.is_8_bits else coarse  # no text tower is in 8 bits
        by["text tower"].tolerance = text if tolerance is None else tolerance
        by["score"].tolerance = ARITHMETIC if tolerance is None else tolerance
        self.failed: dict[str, str] = {}  # videos that neither side can read, and why
        self.pixels: list[list[np.ndarray]] = [[], []]  # of A and B, each by its own steps alone
        self.clips: dict[str, np.ndarray] = {}  # the clips that both video towers get
        self.ids: np.ndarray | None = None
        self.own_ids: list[np.ndarray] = []

    def run(self, videos: Sequence[Path] | None, folder: Path) -> None:
        """Run every stage, in the order of the data."""
        self._files()
        if not self.by["decode"].lacks(self.pair, "decode"):
            self._videos(list(videos or inputs.write_videos(folder, self.short_side)))
        self.by["resize"].lacks(self.pair, "resize")
        self._input()
        self._ids()
        self.graphs = Graphs(self.pair, folder, self.say, self.given_tolerance)
        self.graphs.check_weights(self.by["weights"])
        self.by["video tower"].reference = self.graphs.outputs
        self._towers()
        if (parts := parts_stage(self.b, self.tolerance)) is not None:
            self.stages.insert(1 + self.stages.index(self.by["video tower"]), parts)
        self._operations()
        if self.is_8_bits:
            with self.by["bound"].catch("the clips"):
                low = max(self._range("batch")[0], 1)
                batches = {n: np.repeat(c[None], low, 0) for n, c in self.clips.items()}
                self.graphs.check_bound(self.by["bound"], self.seen, batches, self._tensor)
        self._score()
        compare_labels(self.by["labels"], self.pair, self.clips, self._tensor, self.say)
        self._rank()

    def _files(self) -> None:
        stage = self.by["files"]
        for letter, side in zip("AB", self.pair, strict=True):
            with stage.catch(letter):
                wrong = side.damage()
                if wrong is not None:
                    stage.count += 1
                if wrong:
                    stage.fail(letter, "; ".join(wrong))
        stage.reference = "hashes in its own manifest.json"
        if not stage.count:
            stage.absent = "not compared: neither side has a manifest"

    def _videos(self, paths: Sequence[Path]) -> None:
        decoded, resized = self.by["decode"], self.by["resize"]
        for total in (1, 2, 3, 7, 12, 31, 64, 65, 300, 12345):
            for t in self._common("frames", self.frames):
                with decoded.catch(f"T={t} of {total}"):
                    pair = [s.indices(total, t) for s in self.pair]
                    decoded.compare(f"frame numbers of T={t} of {total}", pair, 1)
        for path in paths:
            self.say(f"decode, resize {path.name}")
            got: list[Any] = [None, None]
            reasons: list[str] = []
            for i, side in enumerate(self.pair):
                try:
                    got[i] = decode(side, path)
                except (InputError, ValueError) as e:
                    reasons.append(str(e))
            if len(reasons) == 2:  # the file is at fault, not a side
                self.failed[str(path)] = reasons[0]
                continue
            if reasons:
                decoded.fail(path.name, reasons[0])
            else:
                (n, images), (m, others) = got
                decoded.compare(f"{path.name}, frame numbers", (n, m), 1)
                for i, images_of in enumerate(zip(images, others, strict=False)):
                    decoded.compare(f"{path.name}, frame {i} of T", images_of, 255)
            shared = (got[0] or got[1])[1]
            made = self._resize(path.name, shared)
            for i, own in enumerate(made):
                if got[i] is not None and got[i][1] is not shared:
                    with resized.catch(path.name):
                        own = self.pair[i].pixels(got[i][1])
                if own is not None:
                    self.pixels[i].append(own)
            shown = made[0] if made[0] is not None else made[1]
            if shown is not None:
                self.clips[path.name] = shown
        if paths and not any(str(path) not in self.failed for path in paths):
            why = first_reasons(self.failed.values(), "")
            raise InputError(f"none of the {len(paths)} videos could be read: {why}")
        for name, images in inputs.noise_frames(self.short_side):
            self._resize(name, images)
        decoded.agreement = decoded.equal / max(decoded.count, 1)

    def _resize(self, name: str, images: list[np.ndarray]) -> list[np.ndarray | None]:
        stage = self.by["resize"]
        made: list[np.ndarray | None] = [None, None]
        for i, side in enumerate(self.pair):
            with stage.catch(name):
                made[i] = side.pixels(images)
        if made[0] is not None and made[1] is not None:
            stage.compare(name, (made[0], made[1]), 255)
        return made

    def _input(self) -> None:
        stage = self.by["input"]
        if stage.lacks(self.pair, "input") or not self._case_clips:
            return
        pixels = self._case_clips[0][1]
        for form in dict.fromkeys((self.a.form, self.b.form, FLOAT)):
            with stage.catch(f"{form.dtype} {form.layout}"):
                # A side's own form is the one that its manifest names.
                pair = [s.prepare(pixels, None if form == s.form else form) for s in self.pair]
                stage.compare(f"{form.dtype} {form.layout}", pair)

    def _ids(self) -> None:
        stage, log = self.by["ids"], logging.getLogger("stan_infer.text.tokenizer")
        if not stage.lacks(self.pair, "ids"):
            made: list[np.ndarray] = []
            # One of our texts is too long on purpose, so the warning about that is switched off.
            log.disabled, before = log.disabled or self.texts == list(inputs.TEXTS), log.disabled
            try:
                for letter, side in zip("AB", self.pair, strict=True):
                    with stage.catch(letter):
                        made.append(side.ids(self.texts))
            finally:
                log.disabled = before
            if len(made) == 2:
                stage.compare("all texts", (made[0], made[1]), 1)
                same = made[0].shape == made[1].shape and (made[0] == made[1]).all(1)
                stage.agreement = float(np.mean(same))
                if stage.error:
                    rows = np.flatnonzero(~np.asarray(same))
                    stage.worst = f"text {rows[0]}" if len(rows) else stage.worst
            self.ids = made[0] if made else None
            self.own_ids = made if len(made) == 2 else []

    @cached_property
    def _case_clips(self) -> list[tuple[str, np.ndarray]]:
        exact = all(s.precision == "fp32" for s in self.pair)
        return inputs.video_cases(
            self._common("frames", self.frames),
            self.a.image_size,
            {axis: self._range(axis) for axis in ("batch", "frames")},
            calm=self.is_8_bits,
            patches=next((p for s in self.pair if (p := s.patches())), None) if exact else None,
        )

    def _towers(self) -> None:
        video, text = self.by["video tower"], self.by["text tower"]
        self.seen: list[dict[str, Arrays]] = [{}, {}]  # A's and B's video features by clip
        if not video.lacks(self.pair, "video"):
            least = self._range("batch")[0]
            if not self._case_clips:
                video.absent = "not compared: the sides share no batch size or number of frames"
            else:
                for name, pixels in self._case_clips:
                    self._tower(video, name, "video", pixels)
                if not self.clips:
                    t, size = self._common("frames", [12])[0], self.a.image_size
                    for seed in range(4):
                        self.clips[f"moving {seed}"] = moving_frames(t, size, size, seed)
                for name, clip in self.clips.items():
                    made = self._tower(video, name, "video", np.repeat(clip[None], least, 0))
                    for seen, arrays in zip(self.seen, made, strict=True):
                        if arrays:
                            seen[name] = {k: v[:1] for k, v in arrays.items()}
        if not text.lacks(self.pair, "text"):
            longest, most = self._range("length")[1], self._range("texts")[1]
            for name, ids in inputs.text_cases(self.config, longest, most):
                self._tower(text, name, "text", ids)
                self.ids = ids if self.ids is None else self.ids
            assert self.ids is not None  # of `_ids`, or of the first case
            self.words = self._tower(text, "the texts", "text", self.ids)

    def _tower(self, stage: Stage, name: str, role: str, given: np.ndarray) -> list[Arrays]:
        """Run one case of a tower on both sides and compare; a side that failed gives {}."""
        self.say(f"{stage.name}: {name}")
        made: list[Arrays] = [{}, {}]
        errors = []
        for i, side in enumerate(self.pair):
            try:
                tensor = self._tensor(given, side) if role == "video" else given
                made[i] = side.video(tensor) if role == "video" else side.text(tensor)
            except (InputError, ValueError) as e:
                errors.append(str(e)[:300])
        free = all(s.kind == "graph" for s in self.pair)
        if len(errors) == 2 and free and stage.count:
            return made  # a size beyond what either takes, which a bare graph does not say
        if errors:
            stage.fail(name, errors[0])
            return made
        with stage.catch(name):
            want, got = self.graphs.expected(role, made, given, self._tensor)
            for key in sorted(set(want) & set(got)):
                stage.compare(f"{name}: {key}", (want[key], got[key]))
        return made

    def _tensor(self, pixels: np.ndarray, side: Side) -> np.ndarray:
        """Pixels in the form that one side's graph takes, prepared by A for both, else by B."""
        for by in self.pair:
            if by.lacks("input") is None:
                try:
                    return by.prepare(pixels, side.form)
                except (InputError, ValueError, TypeError):
                    continue  # a failure of the stage "input"
        return to_input(pixels, side.form, [128.0] * 3, [64.0] * 3)

    def _features(self) -> tuple[Arrays, Arrays]:
        """Text and video features of A, or of B where A made none."""
        seen, words = self.seen[0] or self.seen[1], self.words[0] or self.words[1]
        if not seen or not words:
            raise InputError("neither side made features")
        keys = next(iter(seen.values()))
        return words, {k: np.concatenate([f[k] for f in seen.values()]) for k in keys}

    def _score(self) -> None:
        stage = self.by["score"]
        stage.absent = self.by["video tower"].absent
        if stage.absent or stage.lacks(self.pair, "score", "text"):
            return
        self.say("score")
        with stage.catch("the texts with the clips"):
            words, seen = self._features()
            assert self.ids is not None
            pair = [s.score(words, self.ids, seen) for s in self.pair]
            stage.compare("the texts with the clips", pair)

    def _rank(self) -> None:
        stage = self.by["rank"]
        if stage.lacks(self.pair, "decode", "resize", "input", "video", "text", "score"):
            return
        if not all(self.pixels):
            stage.absent = "not compared: a side has no clip of its own"
            return
        self.say("rank")
        made = []
        for i, side in enumerate(self.pair):
            with stage.catch(f"{'AB'[i]}'s own way"):
                ids = self.own_ids[i] if self.own_ids else self.ids
                assert ids is not None
                low = side.limits("batch")[0]
                clips = [np.repeat(p[None], low, 0) for p in self.pixels[i]]
                each = [self.graphs.own_video(side, c) for c in clips]
                seen = {k: np.concatenate([f[k][:1] for f in each]) for k in each[0]}
                made.append(side.score(side.text(ids), ids, seen))
        if len(made) < 2:
            return
        # Resized pixels may differ by LEVELS, which moves scores more than rounding does.
        slack = 10 if self.by["resize"].error else 1
        stage.reference = self.graphs.outputs
        compare_ranks(stage, made, self.tolerance * slack)

    def _operations(self) -> None:
        """Run each operation of the towers' graphs on the reference's values."""
        if not self.by["video tower"].absent:
            size, cases = self.a.image_size, []
            batch = self._common("batch", [2])[0]
            for t in self._common("frames", [1, 3]):
                clips = [c for _, c in inputs.hard_clips(t, size)]
                cases.append(np.stack((clips * batch)[:batch]))
            with self.by["video tower"].catch("operations"):
                self.graphs.check_operations("video", self.by["video tower"], cases, self._tensor)
        if not self.by["text tower"].absent:
            longest = self._range("length")[1]
            ids = inputs.hard_ids(longest, self.config.vocab_size if self.config else 100)
            with self.by["text tower"].catch("operations"):
                self.graphs.check_operations("text", self.by["text tower"], [ids], self._tensor)

    def blocks(self) -> dict[str, Any]:
        """The block that differs, for each tower that failed, and where weights differ."""
        found: dict[str, Any] = {}
        for role in ("video", "text"):
            if self.by[f"{role} tower"].row()["pass"] is False:
                found[f"{role} tower"] = self.graphs.bisect(role)
        if "bound" in self.by and self.by["bound"].row()["pass"] is False:
            clip = next(iter(self.clips.values()))[None]
            found["bound"] = self.graphs.costliest("video", clip, self._tensor)
        if self.by["weights"].row()["pass"] is False:
            role = next((r for r, s in self.graphs.suspects.items() if s.weights), "video")
            found["weights"] = self.graphs.bisect(role)
        return found

    def _range(self, axis: str) -> tuple[int, int]:
        """Smallest and largest size of an axis that both sides take."""
        found = []
        for side in self.pair:
            with self.by[f"{tower_of(axis)} tower"].catch(axis):
                found.append(side.limits(axis))
        return max((r[0] for r in found), default=1), min((r[1] for r in found), default=0)

    def _common(self, axis: str, wanted: Sequence[int]) -> list[int]:
        """The wanted sizes, each moved into the range that both sides take."""
        low, high = self._range(axis)
        return sorted({min(max(n, low), high) for n in wanted}) if low <= high else []
