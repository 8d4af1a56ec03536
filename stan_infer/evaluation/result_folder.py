"""The folder of an evaluation: tables, scores, charts, the record and a page; whole or not at all.

ranks.csv or recognition.csv: every question with its answers; classes.csv, categories.csv;
scores.npz; metrics.json; ranks.png, ranks.svg, confusion.png, confusion.svg; index.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.npz_file import write_npz
from stan_infer.errors import storable
from stan_infer.evaluation.answers import Answers, class_rows, group_rows, query_rows
from stan_infer.evaluation.compare import RECORD
from stan_infer.evaluation.page import charts, render_page
from stan_infer.library.thumbnails import check_thumbnails
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, check_folder, new_folder
from stan_infer.system.charts import image_files, inline_svg
from stan_infer.system.csv_file import write_csv
from stan_infer.system.json_file import json_line
from stan_infer.system.packages import require

_TABLES = ("ranks.csv", "recognition.csv", "classes.csv", "categories.csv")
_CHARTS = tuple(f"{name}.{kind}" for name in ("ranks", "confusion") for kind in ("png", "svg"))
_NAME_LENGTH = 255
why_keep = earlier_result.folder(
    {*_TABLES, *_CHARTS, "scores.npz", "index.html"},
    RECORD,
    earlier_result.json_object("eval", "stan-infer eval"),
    "an evaluation",
)


def check_results(folder: Path, *, sources: Sources) -> None:
    """Raise InputError or MissingError where write_results would; call it before long work."""
    require("matplotlib", "--out", "report")
    check_thumbnails()
    check_folder(folder, why_keep, sources=sources)


def write_results(
    folder: Path,
    title: str,
    record: Mapping[str, Any],
    answers: Answers,
    pictures: Mapping[str, str],
    *,
    sources: Sources,
) -> None:
    """Write the folder; one that is there must be an earlier one.

    record: as `print_json` is given it, with its schema. pictures: see page.render_page. Raises
    InputError if it cannot be written, MissingError without matplotlib.
    """
    figures = charts(answers)
    page = render_page(
        title, record, answers, [inline_svg(f, name) for name, f in figures.items()], pictures
    )
    with new_folder(folder, why_keep, sources=sources) as place:
        head, rows = query_rows(answers)
        name = "ranks.csv" if answers.task.is_retrieval else "recognition.csv"
        write_csv(place / name, head, rows)
        for name, groups in (("classes", class_rows), ("categories", group_rows)):
            if table := groups(answers):
                write_csv(place / f"{name}.csv", list(table[0]), [list(r.values()) for r in table])
        for name, figure in figures.items():
            for kind, data in image_files(figure, name).items():
                (place / f"{name}.{kind}").write_bytes(data)
        write_npz(place / "scores.npz", _arrays(answers).items())
        (place / RECORD).write_text(json_line(record) + "\n", encoding="utf-8")
        (place / "index.html").write_text(page, encoding="utf-8")


def _arrays(answers: Answers) -> dict[str, Any]:
    """scores [Q, B] or [N, C], right int64 [Q] or [N] (the column), ranks; names of both axes.

    Names are cut, as an array has the width of its longest; the table has them whole.
    """
    task = answers.task
    names = {"videos": task.videos, "texts" if task.is_retrieval else "classes": task.texts}
    if not task.is_retrieval:
        names["classes"] = task.classes
    return {
        "scores": answers.scores,
        "right": np.array(answers.right),
        "ranks": answers.ranking.ranks,
        **{
            name: np.array([storable(v)[:_NAME_LENGTH] for v in values])
            for name, values in names.items()
        },
    }
