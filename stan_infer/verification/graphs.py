"""The ONNX graph of a tower, held to what it should be: its weights, nodes and operations.

What it should be is recomputed from the other side's checkpoint or fp32 graph, in the precision of
the suspected graph, or is the other side's graph itself where both are of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.errors import CheckError, InputError, MissingError
from stan_infer.verification.bound import check_bound
from stan_infer.verification.cut import Cut
from stan_infer.verification.operations import compare_operations
from stan_infer.verification.side import Arrays, Side
from stan_infer.verification.stage import Stage
from stan_infer.verification.suspect import ROOT_MEAN_SQUARE, Suspect, find_helper, find_suspect
from stan_infer.verification.weights import count_other_nodes, count_shared, departures

Tensor = Callable[[np.ndarray, Side], np.ndarray]
_OUTPUTS = {"video/head/video": "video_embeds", "video/head/frames": "frame_embeds"}


class Graphs:
    """The graphs of a pair of sides, opened when they are asked for."""

    def __init__(
        self,
        pair: tuple[Side, Side],
        folder: Path,
        say: Callable[[str], None],
        tolerance: float | None = None,
    ) -> None:
        """folder: for graphs that are written to compare with. tolerance: of an operation."""
        self.pair, self.folder, self.say, self.tolerance = pair, folder, say, tolerance
        self.suspects: dict[str, Suspect] = {}
        self.reasons: dict[str, str] = {}
        self.outputs = "A"  # what outputs of the video tower are compared with, in words

    def check_weights(self, stage: Stage) -> None:
        """Compare the files of both towers with what they should hold."""
        stage.has_errors = False
        references: list[str] = []
        for role in ("video", "text", "preprocess", "score"):
            self.say(f"weights of {role}.onnx")
            is_tower = role in ("video", "text")
            if not is_tower and not references:  # they alone prove nothing
                break
            try:
                suspect: Suspect | str | None
                if is_tower:
                    suspect = find_suspect(self.pair, role, self.folder)
                else:
                    suspect = find_helper(self.pair, role, self.folder)
                if isinstance(suspect, Suspect):
                    self.suspects[role] = suspect
                    references.append(self._compare(stage, suspect))
                elif suspect is not None:
                    self.reasons[role] = suspect
            except (InputError, CheckError, ValueError, TypeError, KeyError) as e:
                self.reasons[role] = str(e)[:300]
                stage.fail(f"{role} graph", self.reasons[role])
        for role, reason in self.reasons.items():
            if references and not any(side.lacks(role) for side in self.pair):
                references.append(f"{role} not compared: {reason}")
                if role in ("video", "text") and not stage.failed:  # the other is no proof of it
                    stage.absent = f"not compared as a whole: {role}: {reason}"
        stage.reference = "; ".join(dict.fromkeys(references))
        video = self.suspects.get("video")
        if video is not None and video.is_8_bits:
            self.outputs = video.reference
        if not stage.count:
            stage.absent = f"not compared: {'; '.join(dict.fromkeys(self.reasons.values()))}"

    def expected(
        self, role: str, made: Sequence[Arrays], case: np.ndarray, tensor: Tensor
    ) -> tuple[Arrays, Arrays]:
        """What to compare: what A and B made or, of 8 bits, the recomputed outputs and theirs.

        case: pixels [B, T, S, S, 3]. tensor: see check_operations.
        """
        suspect = self.suspects.get(role)
        if suspect is None or not suspect.is_8_bits:
            return made[0], made[1]
        found = _outputs(suspect, tensor(case, suspect.side))
        return found, made[self.pair.index(suspect.side)]

    def own_video(self, side: Side, pixels: np.ndarray) -> Arrays:
        """Features of clips [B, T, S, S, 3] by a side's own way; of the exact one in 8 bits too."""
        suspect = self.suspects.get("video")
        if suspect is None or not suspect.is_8_bits or side is not suspect.other:
            return side.video(side.prepare(pixels))
        return _outputs(suspect, side.prepare(pixels, suspect.side.form))

    def check_operations(
        self, role: str, stage: Stage, cases: Sequence[np.ndarray], tensor: Tensor
    ) -> None:
        """Run every operation of a tower's graph on the reference's values.

        cases: pixels [B, T, S, S, 3], or ids. tensor: a function from pixels and a side to the
        input of that side's graph.
        """
        suspect = self.suspects.get(role)
        if suspect is None:
            reason = self.reasons.get(role)
            stage.reference += f" (operations not compared: {_brief(reason)})" if reason else ""
            return
        try:
            cut, run = Cut(suspect.stored.path), suspect.run()
        except MissingError as e:
            stage.reference += f" (operations not compared: {_brief(str(e))})"
            return
        for case in cases:
            if role == "video":
                given = tensor(case, suspect.source), tensor(case, suspect.side)
            else:
                given = case.astype(np.int32), case.astype(np.int32)
            found = compare_operations(cut, run, given, self.say)
            suspect.compared += found
            for one in found:
                for where, error, tolerance in suspect.judged(one):
                    stage.add(where, error, tolerance, one.reason)
        names, words = len({c.name for c in suspect.compared}), suspect.reference
        same = words == stage.reference
        strict = f"; {names} operations alone, each within {suspect.tolerance:g}"
        if suspect.is_8_bits:
            strict += f" (8 bits: root mean square {ROOT_MEAN_SQUARE:g})"
        stage.reference += strict + ("" if same else f": {words}")

    def bisect(self, role: str) -> dict[str, Any]:
        """Name the first block of a tower whose graph departed; {} if nothing was compared."""
        suspect = self.suspects.get(role)
        if suspect is None:
            return {"block": None, "reason": self.reasons.get(role)}
        stored, wanted = suspect.stored, suspect.wanted
        order = {name: i for i, name in enumerate(wanted.makers)}
        found = [(c.name, c.error, c.reason) for c in suspect.compared if suspect.departed(c)]
        found += [(d.name, d.error, f"{d.name} {d.reason}") for d in suspect.weights]
        named = {
            "graph": stored.path.name,
            "block": None,
            "operation": None,
            "error": 0.0,
            "reason": "each operation agrees on the reference's inputs: rounding adds up",
            "weights": [d.name for d in suspect.weights[:100]],
            "blocks": len({wanted.block_of(c.name) for c in suspect.compared}),
        }
        places = []
        for name, error, reason in found:
            operation = wanted.operation_of(name) or name
            places.append((order.get(operation, len(order)), operation, name, error, reason))
        if not places:
            return named
        _, operation, name, error, reason = min(places, key=lambda p: p[0])
        block = wanted.block_of(name) or operation
        facts = {"block": block, "operation": operation, "error": error, "reason": reason or None}
        return {**named, **facts}

    def check_bound(
        self,
        stage: Stage,
        seen: Sequence[Mapping[str, Arrays]],
        batches: Mapping[str, np.ndarray],
        tensor: Tensor,
    ) -> None:
        """Hold the video tower in 8 bits to its bound; see `bound`.

        seen: A's and B's features of whole clips, by name. batches: pixels of the clips.
        """
        suspect = self.suspects.get("video")
        if suspect is None or not suspect.is_8_bits:
            reason = self.reasons.get("video", "neither side has the weights in fp32")
            stage.absent = f"not compared: {_brief(reason)}"
            return
        exact, coarse = (seen[self.pair.index(s)] for s in (suspect.other, suspect.side))
        made = {n: (exact[n], coarse[n]) for n in exact if n in coarse}
        side = suspect.side
        check_bound(stage, suspect, made, lambda name: tensor(batches[name], side))

    def costliest(self, role: str, clip: np.ndarray, tensor: Tensor) -> dict[str, Any]:
        """Name the linear whose 8 bits differ most from fp32 on fp32's values.

        clip: pixels [1, T, S, S, 3].
        """
        suspect = self.suspects[role]
        assert suspect.smoothed is not None
        given = tensor(clip, suspect.side)
        cut = Cut(suspect.stored.path)
        found = compare_operations(cut, suspect.smoothed(), (given, given), self.say)
        worst = max(found, key=lambda c: c.error)
        operation = suspect.wanted.operation_of(worst.name) or worst.name
        return {
            "graph": suspect.stored.path.name,
            "block": suspect.wanted.block_of(worst.name) or operation,
            "operation": operation,
            "error": worst.error,
            "reason": worst.reason or "its 8 bits differ most from fp32",
        }

    def _compare(self, stage: Stage, suspect: Suspect) -> str:
        """Compare one file, and return in words with what."""
        wanted, words = suspect.wanted, suspect.reference
        if self.tolerance is not None:
            suspect.tolerance = self.tolerance
        but = suspect.but
        suspect.weights += departures(wanted, suspect.stored, whole=suspect.whole, but=but)
        stage.count += max(count_shared(wanted, suspect.stored), 1)
        for d in suspect.weights:
            stage.wrong(d.name, d.reason)
        if not suspect.whole and (other := count_other_nodes(wanted, suspect.stored, but)):
            many = (
                "1 node that differs and is" if other == 1 else f"{other} nodes that differ and are"
            )
            words += f" ({suspect.stored.path.name}: {many} not judged: {suspect.unjudged})"
        if suspect.is_written:  # it is as large as the suspected one
            wanted.close()
            for file in (wanted.path, wanted.path.with_name(f"{wanted.path.name}.data")):
                file.unlink(missing_ok=True)
        return words


def _outputs(suspect: Suspect, given: np.ndarray) -> Arrays:
    """The outputs of the recomputed video tower."""
    found: Arrays = {}

    def note(name: str, value: np.ndarray) -> None:
        if name in _OUTPUTS:
            found[_OUTPUTS[name]] = value

    suspect.run()(given, note)
    return found


def _brief(reason: str) -> str:
    """A reason without the command that helps, which stage "weights" has."""
    return reason.partition(": pip install")[0]
