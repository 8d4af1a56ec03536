"""Compare two models from video bytes to rank: each stage on the same input, then end to end.

A is the reference. In each stage both sides get what A made in the stage before, so that a fault
shows in its own stage; only in the last one, rank, each side takes its own results all the way. A
difference raises nothing: it is a row of the result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.artefacts.precision import EIGHT_BITS, TOLERANCES
from stan_infer.errors import InputError, first_reasons
from stan_infer.system.temporary import temporary_folder
from stan_infer.verification import inputs
from stan_infer.verification.bisect import bisect as name_block
from stan_infer.verification.open import open_side
from stan_infer.verification.options import VerifyOptions
from stan_infer.verification.side import FLOAT, Arrays, Side, decode, to_input
from stan_infer.verification.stage import Stage
from stan_infer.video.synthetic import moving_frames

if TYPE_CHECKING:
    from stan_infer.network.model import Stan

LEVELS = 1  # of 255, of resized pixels: another implementation may round a half the other way
ARITHMETIC = 1e-5  # of normalised pixels, and of fp32 scores of the same features: rounding alone


def verify(
    a: str | Path | Stan,
    b: str | Path | Stan,
    *,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Compare B with the reference A, stage by stage.

    a, b: each a checkpoint, a loaded Stan, an exported folder, .onnx file or plan. options: the
    fields of VerifyOptions.

    Returns a record: stages (a row for each: stage, max_rel, min_cos, agreement, tolerance, pass,
    which is None if it was not compared, worst, cases, note), pass, first_failed, failures (videos
    that neither side can read, which are left out), not_compared, bisect, known_faults, and for a
    and b each kind, name, engine and precision. Raises InputError for a model that cannot be read
    or if no video can, MissingError for a package that is not installed.
    """
    o, say = VerifyOptions(**options), progress or (lambda text: None)
    say("opening both sides")
    pair = open_side(a, o.engine_a, o.settings), open_side(b, o.engine_b, o.settings)
    if o.settings and not any(side.kind == "checkpoint" for side in pair):
        raise InputError("settings belong to a checkpoint, and neither side is one: leave them out")
    work = _Comparison(pair, o, say)
    with temporary_folder("the videos that are made to compare") as folder:
        work.run(o.videos, folder)
    rows = [s.row() for s in work.stages]
    failed = [r["stage"] for r in rows if r["pass"] is False]
    record: dict[str, Any] = {
        side: {k: getattr(s, k) for k in ("kind", "name", "engine", "precision")}
        for side, s in zip("ab", pair, strict=True)
    }
    # A changed file may change no number, so a stage that differs is named before "files".
    first = next((n for n in failed if n != "files"), failed[0] if failed else None)
    compared = any(r["pass"] for r in rows if r["stage"] != "files")
    record |= {"pass": compared and not failed, "first_failed": first, "stages": rows}
    record["failures"] = [{"video": v, "error": e} for v, e in work.failed.items()]
    record["not_compared"] = [r["stage"] for r in rows if r["pass"] is None]
    record["bisect"] = work.blocks() if o.bisect else {}
    record["known_faults"] = [fault for side in pair for fault in side.known_faults()]
    return record


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
        self.config = next((s.config for s in pair if s.config), None)
        self.short_side = self.config.short_side if self.config else 224
        names = ("files", "decode", "resize", "input", "ids", "video tower", "text tower", "score")
        self.stages = [Stage(n) for n in (*names, "labels", "rank")]
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
        self._towers()
        self._score()
        self._labels()
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
        if stage.lacks(self.pair, "input"):
            return
        pixels = self._case_clips()[0][1]
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

    def _case_clips(self) -> list[tuple[str, np.ndarray]]:
        frames, limits = self._common("frames", self.frames), self._range("batch")
        return inputs.hard_batches(frames, self.a.image_size, *limits, calm=self.is_8_bits)

    def _towers(self) -> None:
        video, text = self.by["video tower"], self.by["text tower"]
        self.seen: list[dict[str, Arrays]] = [{}, {}]  # A's and B's video features by clip
        if not video.lacks(self.pair, "video"):
            batch, frames = self._range("batch"), self._range("frames")
            if batch[0] > batch[1] or frames[0] > frames[1]:
                video.absent = "not compared: the sides share no batch size or number of frames"
            else:
                for name, pixels in self._case_clips():
                    self._tower(video, name, "video", pixels)
                if not self.clips:
                    t, size = self._common("frames", [12])[0], self.a.image_size
                    for seed in range(4):
                        self.clips[f"moving {seed}"] = moving_frames(t, size, size, seed)
                for name, clip in self.clips.items():
                    made = self._tower(video, name, "video", np.repeat(clip[None], batch[0], 0))
                    for seen, arrays in zip(self.seen, made, strict=True):
                        if arrays:
                            seen[name] = {k: v[:1] for k, v in arrays.items()}
        if not text.lacks(self.pair, "text"):
            longest = self._range("length")[1]
            entries = self.config.vocab_size if self.config else 100
            wanted = [2, 5, self.config.context_length if self.config else 32, longest]
            for n in sorted({min(max(n, 2), longest) for n in wanted}):
                self._tower(text, f"ids of length {n}", "text", inputs.hard_ids(n, entries))
            if self.ids is None:
                self.ids = inputs.hard_ids(wanted[2], entries)
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
            stage.fail(name, errors[0], given)
            return made
        for key in sorted(set(made[0]) & set(made[1])):
            stage.compare(f"{name}: {key}", (made[0][key], made[1][key]), None, given)
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

    def _labels(self) -> None:
        """Compare a folder's stored class features and scores with the first text tower's."""
        stage = self.by["labels"]
        by = next((s for s in self.pair if not (s.lacks("ids") or s.lacks("text"))), None)
        stage.absent = "not compared: no folder has labels"
        for letter, side in zip("AB", self.pair, strict=True):
            with stage.catch(f"{letter}'s labels"):
                found = side.labels()
                if found is None or by is None or by.config is None:
                    continue
                self.say("labels")
                stage.absent = ""
                ids = by.ids(found[0])
                text, baked = by.text(ids), found[1]
                if "token_embeds" in baked:
                    pair = text["token_embeds"], baked["token_embeds"]
                else:
                    rows = text["text_embeds"]
                    pair = rows / np.linalg.norm(rows, axis=-1, keepdims=True), baked["embeddings"]
                stage.compare(f"{letter}'s {len(ids)} labels", pair)
                if not self.clips:
                    continue
                clip = next(iter(self.clips.values()))[None]
                outputs = side.class_outputs(self._tensor(clip, side))
                if outputs:
                    logits = by.score(text, ids, by.video(self._tensor(clip, by))).T
                    scores = logits * by.config.temperature
                    stage.compare(f"{letter}'s class scores", (scores, outputs["scores"]))
                    with np.errstate(divide="ignore"):
                        got = np.log(outputs["probabilities"].astype(np.float64))
                    want = scores - scores.max(-1, keepdims=True)
                    got = (got - got.max(-1, keepdims=True)) * by.config.temperature
                    # Probabilities below e^-80 of the largest underflow and are not compared.
                    kept = np.where(got > -80 * by.config.temperature, got, want)
                    stage.compare(f"{letter}'s probabilities", (want, kept), np.abs(scores).max())

    def _rank(self) -> None:
        stage = self.by["rank"]
        if stage.lacks(self.pair, "decode", "resize", "input", "video", "text", "score"):
            return
        self.say("rank")
        made = []
        for i, side in enumerate(self.pair):
            with stage.catch(f"{'AB'[i]}'s own way"):
                ids = self.own_ids[i] if self.own_ids else self.ids
                assert ids is not None
                low = side.limits("batch")[0]
                clips = [np.repeat(p[None], low, 0) for p in self.pixels[i]]
                each = [side.video(side.prepare(c)) for c in clips]
                seen = {k: np.concatenate([f[k][:1] for f in each]) for k in each[0]}
                made.append(side.score(side.text(ids), ids, seen))
        if len(made) < 2:
            return
        a, b = made
        stage.count = 1
        if a.shape != b.shape:
            return stage.fail("all texts", f"{b.shape} scores instead of {a.shape}")
        # Resized pixels may differ by LEVELS, which moves scores more than rounding does.
        slack = 10 if self.by["resize"].error else 1
        scale = float(np.abs(a).max())
        tie = 2 * self.tolerance * slack * scale
        lead, other = (x[:, :, None] - x[:, None, :] for x in (a, b))
        with np.errstate(invalid="ignore"):
            swapped = ~((lead <= tie) | (other >= 0) | (other >= -tie))
        wrong = swapped.any((1, 2)) | ~np.isfinite(a).all(1) | ~np.isfinite(b).all(1)
        stage.agreement = float(1 - wrong.mean())
        stage.tolerance = self.tolerance * slack
        stage.compare("all texts with all clips", (a, b))
        if wrong.any():
            stage.fail(f"text {np.flatnonzero(wrong)[0]}", "videos change places")

    def blocks(self) -> dict[str, Any]:
        """The block that differs, for each tower that failed."""
        found: dict[str, Any] = {}
        for role in ("video", "text"):
            stage = self.by[f"{role} tower"]
            named = name_block(role, stage, self.pair, self._tensor, self.tolerance, self.say)
            found |= {stage.name: named} if named else {}
        return found

    def _range(self, axis: str) -> tuple[int, int]:
        """Smallest and largest size of an axis that both sides take."""
        found = []
        for side in self.pair:
            with self.by["text tower" if axis == "length" else "video tower"].catch(axis):
                found.append(side.limits(axis))
        return max((r[0] for r in found), default=1), min((r[1] for r in found), default=0)

    def _common(self, axis: str, wanted: Sequence[int]) -> list[int]:
        """The wanted sizes, each moved into the range that both sides take."""
        low, high = self._range(axis)
        return sorted({min(max(n, low), high) for n in wanted}) if low <= high else []
