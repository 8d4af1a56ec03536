"""Options of an export, checked once, before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stan_infer.artefacts.manifest import MAX_LABELS
from stan_infer.artefacts.opsets import OPSETS, check_runtime
from stan_infer.artefacts.precision import check_precision
from stan_infer.config import StanConfig
from stan_infer.errors import InputError, MissingError, check_whole, check_word, whole
from stan_infer.system.packages import require
from stan_infer.text.templates import read_templates

MAX_BATCH = 4096
_WORDS = {
    "tower": ("both", "video", "text"),
    "input": ("uint8", "float"),
    "head": ("embed", "classify"),
    "graph": ("fused", "reference"),
}

Range = tuple[int, int]  # smallest, largest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of the graphs of one exported folder.

    precision: of weights and linears; norms and softmaxes stay in fp32. input: "uint8"
    [B, T, H, W, 3] RGB with the normalisation inside the graph, or "float" [B, T, 3, H, W]
    normalised. frames, batch: one fixed size, or smallest and largest of a dynamic axis. labels:
    texts of classes, each put into `template` (or several, see text.templates); their embeddings
    are written beside the graph. head: "classify" adds class scores and probabilities [B, n] over
    the labels to the video graph.
    graph: "fused", or "reference", which goes through torch.onnx.export. split: write the video
    tower in two parts, too (trunk.onnx, branch.onnx), which Session.stream needs.
    """

    tower: str = "both"  # or video, text
    precision: str = "fp32"  # or fp16, bf16
    input: str = "uint8"
    frames: int | Range | None = None  # None: 1 to the length of the time table
    batch: int | Range = (1, 32)
    head: str = "embed"
    labels: Sequence[str] = ()
    template: str | Sequence[str] = "{}"
    graph: str = "fused"
    split: bool = False
    opset: int = 20  # 18 to 25
    # uint8 [B, T, S, S, 3], to measure the ranges of fp16 on; None: synthetic clips
    clips: Sequence[np.ndarray] | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # manifest: source, licence
    card: bool = False  # write a README.md

    def check(self, config: StanConfig) -> None:
        """Raise InputError for an unknown word, or values that `config` or each other rule out."""
        check_precision("export", self.precision, ("fp32", "fp16", "bf16"))
        for name, known in _WORDS.items():
            check_word(name, getattr(self, name), known)
        _check_range("frames", self.frame_range(config), config.max_frames)
        _check_range("batch", self.batch_range(), MAX_BATCH)
        if self.tower == "text" and not config.has_text:
            raise InputError(
                "this model has no text tower, because its checkpoint has only the video side: "
                "leave --tower text out"
            )
        if self.graph == "reference" and (self.precision != "fp32" or self.head != "embed"):
            raise InputError(
                f"--graph reference writes fp32 embeddings only, for comparison; got precision "
                f"{self.precision}, head {self.head}: use --graph fused"
            )
        if self.split and (self.graph == "reference" or self.tower == "text"):
            raise InputError(
                "--split writes the fused video tower in two parts: leave out --graph reference "
                "and --tower text"
            )
        if self.precision == "bf16" and config.branch == "conv" and self.opset < 22:
            raise InputError(
                f"ONNX has convolutions in bf16 from opset 22 on, and opset is {self.opset}: give "
                "--opset 22, or another precision"
            )
        self._check_labels(config)

    def frame_range(self, config: StanConfig) -> Range:
        """Smallest and largest T; by default 1 to the length of the time table."""
        if self.frames is None:
            return 1, config.max_frames
        return (self.frames, self.frames) if isinstance(self.frames, int) else self.frames

    def batch_range(self) -> Range:
        """Smallest and largest B."""
        return (self.batch, self.batch) if isinstance(self.batch, int) else self.batch

    def _check_labels(self, config: StanConfig) -> None:
        if self.head == "classify" and not self.labels:
            raise InputError("--head classify needs the classes: --labels FILE, one per line")
        if self.head == "classify" and self.tower == "text":
            raise InputError("--head classify belongs to the video tower; got --tower text")
        if not self.labels:
            return
        if not config.has_text or config.vocab_size != 49408:
            raise InputError("labels need a text tower with CLIP's vocabulary of 49408 entries")
        if len(self.labels) > MAX_LABELS:
            raise InputError(f"{len(self.labels)} labels; allowed are {MAX_LABELS}")
        read_templates(self.template).check(is_mug=config.is_mug)
        for label in self.labels:
            if not label.strip() or len(label.splitlines()) != 1:
                raise InputError(f"label {label[:40]!r} is blank or has more than one line")


def check_opset(opset: int) -> None:
    """Raise InputError for an opset that exports do not write, MissingError for one too new here.

    Written graphs are checked with onnx and run in ONNX Runtime, which must know the opset.
    """
    if opset not in OPSETS:
        low, high = min(OPSETS), max(OPSETS)
        raise InputError(f"opset is {opset!r}; allowed are {low} to {high} (default 20)")
    onnx = require("onnx", "exporting", "cpu")
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise MissingError(
            f"onnx {onnx.__version__} knows opsets to {newest}, not {opset}: pip install -U onnx, "
            f"or --opset {newest}"
        )
    ort = require("onnxruntime", "exporting", "cpu")
    check_runtime(opset, ort.__version__, "the export")


def parse_range(text: str, name: str) -> int | Range:
    """ "12" -> 12, "1:64" -> (1, 64); InputError, which starts with `name`, for anything else."""
    try:
        numbers = [whole(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"{name} {text!r} is neither a number nor a range, as in {name} 1:64")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def fixed_size(limits: Range) -> int | None:
    """The one size of an axis that is not dynamic, else None."""
    return limits[0] if limits[0] == limits[1] else None


def _check_range(name: str, value: Range, largest: int) -> None:
    low, high = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
    for end in (low, high):
        check_whole(name, end, 1)
    if not 1 <= low <= high <= largest:
        what = "ends before it begins" if high < low else "is out of range"
        raise InputError(f"{name} {low}:{high} {what}; allowed are 1 to {largest}")
