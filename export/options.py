"""What can be asked of an export, checked once, before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.errors import InputError, check_word

TOWERS = ("both", "video", "text")
PRECISIONS = ("fp32", "fp16", "bf16")
INPUTS = ("uint8", "float")
HEADS = ("embed", "classify")
GRAPHS = ("fused", "reference")
OPSETS = (18, 25)  # smallest, largest
MAX_BATCH = 4096
MAX_LABELS = 100_000

Range = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of one exported folder's graphs.

    precision: of weights and linears; norms and softmaxes stay in fp32. input: "uint8"
    [B, T, H, W, 3] RGB with the normalisation inside the graph, or "float" [B, T, 3, H, W]
    normalised. frames, batch: one fixed size, or smallest and largest of a dynamic axis. head:
    "classify" adds class scores [B, n] and probabilities over `labels`, each put into `template`;
    "embed" writes the labels' embeddings beside the graph. graph: "fused", or "reference", which
    goes through torch.onnx.export.
    """

    tower: str = "both"  # or video, text
    precision: str = "fp32"  # or fp16, bf16
    input: str = "uint8"
    frames: int | Range | None = None  # None: 1 to the time table's end
    batch: int | Range = (1, 32)
    head: str = "embed"
    labels: Sequence[str] = ()
    template: str = "{}"
    graph: str = "fused"
    opset: int = 20  # 18 to 25
    clips: Sequence[np.ndarray] | None = None  # uint8 [B, T, S, S, 3], for fp16's ranges; or made
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # manifest: source, licence
    card: bool = False  # write a README.md

    def check(self, config: StanConfig) -> None:
        """Raise InputError for an unknown word, a range or a pair that `config` rules out."""
        check_word("tower", self.tower, TOWERS)
        check_word("precision", self.precision, PRECISIONS)
        check_word("input", self.input, INPUTS)
        check_word("head", self.head, HEADS)
        check_word("graph", self.graph, GRAPHS)
        low, high = OPSETS
        if not low <= self.opset <= high:
            raise InputError(f"opset is {self.opset}; allowed are {low} to {high} (default 20)")
        _range("frames", self.frame_range(config), config.max_frames)
        _range("batch", self.batch_range(), MAX_BATCH)
        if self.tower == "text" and not config.has_text:
            raise InputError("this model has no text tower: its checkpoint holds the video side")
        if self.graph == "reference" and (self.precision != "fp32" or self.head != "embed"):
            raise InputError(
                f"--graph reference is the fp32 embedding for comparison; got precision "
                f"{self.precision}, head {self.head}: use --graph fused"
            )
        if self.precision == "bf16" and config.branch == "conv" and self.opset < 22:
            raise InputError(
                f"ONNX has a convolution in bf16 from opset 22 on, and opset is {self.opset}: give "
                "--opset 22, or another precision"
            )
        self._check_labels(config)

    def frame_range(self, config: StanConfig) -> Range:
        """Smallest and largest T; by default all that the time table has."""
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
        if self.template.count("{}") != 1:
            raise InputError(
                f"template {self.template[:60]!r} must hold {{}} once, where the label goes, as in "
                "'a video of {}'"
            )
        for label in self.labels:
            if not label.strip() or len(label.splitlines()) != 1:
                raise InputError(f"label {label[:40]!r} is blank or has more than one line")


def parse_range(text: str, name: str) -> int | Range:
    """ "12" -> 12, "1:64" -> (1, 64); InputError for anything else."""
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"{name} {text!r} is neither a number nor a range, as in {name} 1:64")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def fixed_size(limits: Range) -> int | None:
    """The one size of an axis that is not dynamic, else None."""
    return limits[0] if limits[0] == limits[1] else None


def _range(name: str, value: Range, largest: int) -> None:
    low, high = value
    if not 1 <= low <= high <= largest:
        raise InputError(f"{name} {low}:{high} is out of range; allowed are 1 to {largest}")
