"""An evaluation of a model on files, as it is shown, compared and kept."""

from __future__ import annotations

import dataclasses
from typing import Any

from stan_infer.evaluation.answers import asked, candidates
from stan_infer.evaluation.evaluate import Evaluation
from stan_infer.system.json_file import plain
from stan_infer.system.result import Result

SCHEMA = "stan-infer/eval/1"


@dataclasses.dataclass(frozen=True, repr=False)
class ModelEvaluation(Evaluation, Result):
    """An Evaluation of a model on files.

    Attributes:
        figures: in percent, by direction ("text_to_video", "video_to_text", or "videos" of
            recognition) and name ("R@1", "MdR", "top-1"); ranks count from 1.
        intervals: 95 % intervals (Wilson's) of the recalls and accuracies, as figures.
        outcomes: of each query the rank, or of each video whether it was right (1) or not (0).
        facts: the protocol: data set, split, frames, views, ties and more.
        failed: videos that could not be read, with the reason; they are in no figure.
        answers: the scores and the best answers of each question.
        missing: videos that were not there.
        model: what was evaluated.
        model_sha256: hashes of its files, by name.
        session: facts about what ran; see Session.describe.
        comparison: with another evaluation, if `compare` was given; see compare.compared.
    """

    missing: tuple[str, ...] = ()
    model: str = ""
    model_sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    session: dict[str, Any] = dataclasses.field(default_factory=dict)
    comparison: dict[str, Any] | None = None

    def summary(self) -> str:
        """The figures of each direction, what they count, what failed."""
        parts = [
            f"{way.replace('_', ' ')} " + ", ".join(f"{k} {v:.1f}" for k, v in row.items())
            for way, row in self.figures.items()
        ]
        lost = len(self.failed) + len(self.missing)
        more = f"; {lost} videos are in no figure" if lost else ""
        return f"{self.facts['data set']}, {self.facts['split']}: {'; '.join(parts)}{more}"

    def to_dict(self) -> dict[str, Any]:
        """What `eval --json` prints and metrics.json holds: JSON types, without the scores."""
        task = self.answers.task
        hits = {
            direction: {
                name: [int(h) if h in (0, 1) else h for h in hit.tolist()]
                for name, hit in of.items()
            }
            for direction, of in self.answers.hits.items()
        }
        record = {
            "schema": SCHEMA,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "session": self.session,
            "protocol": self.facts,
            "figures": self.figures,
            "intervals": self.intervals,
            "outcomes": self.outcomes,
            "hits": hits,
            "asked": asked(task),
            "candidates": candidates(task),
            "missing": self.missing,
            "failures": [{"video": k, "error": v} for k, v in self.failed.items()],
        }
        if self.comparison is not None:
            record["comparison"] = self.comparison
        found: dict[str, Any] = plain(record)
        return found
