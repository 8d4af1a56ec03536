"""The HTML page of an evaluation: figures, charts, classes, the worst questions with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.evaluation.answers import (
    Answers,
    class_rows,
    confused,
    confusion,
    group_rows,
)
from stan_infer.system.charts import MAX_NAMES, heat_map, histogram
from stan_infer.system.html_page import escaped, html_charts, html_page, html_table

WORST = 50
MAX_CLASSES = 2000  # of a confusion matrix and of a table on the page; the largest sets have 700
_PAIRS, _NAMES, _LONGEST = 20, 50, 300  # confused pairs, failures; characters of a text
# Ranks that share a column of the chart: from each of these to the next.
_EDGES = (1, 2, 3, 4, 6, 11, 21, 51, 101, 201, 501, 1001, 2001, 5001, 10001, 100001)
_STYLE = """
.card img { width: 100%; max-width: 288px; height: auto; display: block; }
.says { border-left: 4px solid #0072B2; padding-left: .7rem; font-weight: 600; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem; }
.facts td { white-space: normal; text-align: left; overflow-wrap: anywhere; }
.facts td:first-child { white-space: nowrap; vertical-align: top; }
"""


def charts(answers: Answers) -> dict[str, Any]:
    """Figures of matplotlib by the names of their files, without a suffix."""
    what = "texts" if answers.task.is_retrieval else "videos"
    whose = "video" if answers.task.is_retrieval else "class"
    title = f"Rank of the right {whose}"
    words = ("rank (1: answered first)", f"number of {what}")
    found = {"ranks": histogram(_columns(answers.ranking.ranks), title, *words)}
    if not answers.task.is_retrieval and len(answers.task.classes) <= MAX_CLASSES:
        found["confusion"] = _confusion(answers)
    return found


def _confusion(answers: Answers) -> Any:
    """The chart of what the videos of each class were taken for.

    Most classes may have no video and be no answer: they are left out then.
    """
    counts, classes = confusion(answers), answers.task.classes
    own = np.nonzero(counts.sum(0) + counts.sum(1))[0]
    if len(own) > max(MAX_NAMES, len(classes) // 2):
        own = np.arange(len(classes))
    counts = counts[np.ix_(own, own)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    title = "Confusion of classes"
    if len(own) < len(classes):
        title += f": the {len(own)} of {len(classes)} that occur"
    by_number = ", by its number in scores.npz" if len(own) > MAX_NAMES else ""
    words = {
        "title": title,
        "x": f"answered class{by_number}",
        "y": f"right class{by_number}",
        "unit": "share of the row's videos",
    }
    return heat_map(shares, [classes[i] for i in own], own.tolist(), words)


def _columns(ranks: Any) -> dict[str, int]:
    """How many ranks lie in each column, up to the last that has some; a tie's 1.5 counts as 2."""
    whole = np.ceil(ranks)
    found = {}
    for low, high in zip(_EDGES, (*_EDGES[1:], np.inf), strict=True):
        if low > whole.max():
            break
        name = f"{low}" if high == low + 1 else f"{low}-{high - 1}" if high < np.inf else f"{low}-"
        found[name] = int(((whole >= low) & (whole < high)).sum())
    return found


def render_page(
    title: str,
    record: Mapping[str, Any],
    answers: Answers,
    svgs: Sequence[str],
    pictures: Mapping[str, str],
) -> str:
    """Return the page as HTML text.

    record: of the evaluation, as JSON types. svgs: the charts. pictures: data: URLs of thumbnails
    by the name of a video.
    """
    facts = record["protocol"]
    kind = "texts" if answers.task.is_retrieval else "classes"
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f"<p>{facts['videos']} videos, {facts[kind]} {kind} (split: {_cut(facts['split'])}); "
        f"{facts['frames']} frames per clip, views {escaped(facts['views'])}. Figures are "
        f"percentages{', ranks (MdR, MnR) are not' if answers.task.is_retrieval else ''}; their "
        "95 % intervals are in brackets.</p>",
        _figures(record),
        _copies(facts),
        _words(answers.task.is_retrieval),
        *_comparison(record),
        html_charts(svgs),
        *_not_drawn(answers),
        *_table_of(group_rows(answers), "Categories", "category", opened=True),
        *_table_of(class_rows(answers), "Classes", "class", opened=False),
        *_confused(answers),
        *_worst(answers, pictures),
        "<h2>Protocol</h2>",
        _facts({**facts, "model": record["model"], **record["session"]}),
        *_left_out(record),
    ]
    return html_page(title, parts, _STYLE)


def copies_sentence(facts: Mapping[str, Any]) -> str:
    """What copies among the videos mean for the intervals; "" where there are none."""
    if not (count := facts.get("copies")):
        return ""
    are = "is a copy of another" if count == 1 else "are copies of others"
    return f"{count} of {facts['videos']} videos {are}: the interval takes them as independent"


def _copies(facts: Mapping[str, Any]) -> str:
    remark = copies_sentence(facts)
    return f"<p class=says>{remark}.</p>" if remark else ""


def _figures(record: Mapping[str, Any]) -> str:
    names = list(next(iter(record["figures"].values())))
    rows = []
    for direction, figures in record["figures"].items():
        within = record["intervals"][direction]
        cells = [
            f"{figures[n]:.1f}"
            + (f" ({within[n][0]:.1f} to {within[n][1]:.1f})" if n in within else "")
            for n in names
        ]
        rows.append([direction.replace("_", " "), *cells])
    return html_table(["", *names], rows)


def _words(is_retrieval: bool) -> str:
    """What the words of the page mean, folded up."""
    asked, answers = ("texts", "videos") if is_retrieval else ("videos", "classes")
    meanings = {
        "R@k": "the share of texts whose right video is among the k best answers; video to text: "
        "the share of videos whose right text is",
        "MdR, MnR": "the median and the mean rank of the right answer; 1 is best",
    }
    if not is_retrieval:
        meanings = {
            "top-k": "the share of videos whose right class is among the k best answers",
            "mean class": "the mean over the classes of the top-1 share of each, so that a class "
            "of few videos counts as much as one of many",
        }
    meanings |= {
        "rank": f"the place of the right one among all {answers}, ordered by score; equal scores "
        "share the middle of their places",
        "95 % interval": f"in 95 of 100 evaluations on other {asked} of the same kind such a range "
        "holds the figure of very many (Wilson's interval); the fewer they are, the wider it is",
        "views": "clips of a video, spread over its time, times crops of each frame; 1x1 is one "
        "clip with one crop, and of more the class probabilities are averaged",
    }
    terms = "".join(f"<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>" for k, v in meanings.items())
    return f"<details><summary>What the words mean</summary><dl>{terms}</dl></details>"


def _comparison(record: Mapping[str, Any]) -> list[str]:
    found = record.get("comparison")
    if not found:
        return []
    rows = [
        [
            f"{direction.replace('_', ' ')} {name}",
            f"{d['difference']:+.1f}",
            "{:+.1f} to {:+.1f}".format(*d["interval"]),
            f"{d['only this']:g}",
            f"{d['only the other']:g}",
        ]
        for direction, figures in found["differences"].items()
        for name, d in figures.items()
    ]
    head = ["", "difference, points", "95 % interval", "right only here", "right only there"]
    says = f"<p class=says>{escaped(found['sentence'])}.</p>"
    says += _copies(record["protocol"])
    return ["<h2>Compared</h2>", says, html_table(head, rows)]


def _table_of(rows: Sequence[Mapping[str, Any]], title: str, word: str, opened: bool) -> list[str]:
    """A table of groups, the worst first; folded up unless `opened`."""
    if not rows:
        return []
    first = next(k for k in rows[0] if k in ("R@1", "top-1"))
    ordered = sorted(rows, key=lambda r: r[first])
    cells = [
        [f"{v:.1f}" if isinstance(v, float) else _short(v) for v in r.values()]
        for r in ordered[:MAX_CLASSES]
    ]
    folded = "open" if opened else ""
    what = f"{len(rows)} {'categories' if word == 'category' else 'classes'}, the worst first"
    table = html_table(list(rows[0]), cells, (word, "taken for"))
    return [f"<h2>{title}</h2>", f"<details {folded}><summary>{what}</summary>{table}</details>"]


def _not_drawn(answers: Answers) -> list[str]:
    if (count := len(answers.task.classes)) <= MAX_CLASSES:
        return []
    return [f"<p class=soft>No confusion is drawn: {count} classes; up to {MAX_CLASSES} are.</p>"]


def _confused(answers: Answers) -> list[str]:
    if answers.task.is_retrieval or not (pairs := confused(answers)):
        return []
    rows = [[_short(right), _short(wrong), count] for right, wrong, count in pairs[:_PAIRS]]
    table = html_table(["right", "answered", "videos"], rows, ("right", "answered"))
    return ["<h2>Most often confused</h2>", table]


def worst_videos(answers: Answers) -> list[int]:
    """The videos that the cards of the worst questions show, each once."""
    found: dict[int, None] = {}
    for q in answers.worst[:WORST].tolist():
        both = (answers.task.owners[q], answers.best[q, 0]) if answers.task.is_retrieval else (q,)
        found |= dict.fromkeys(map(int, both))
    return list(found)


def _worst(answers: Answers, pictures: Mapping[str, str]) -> list[str]:
    wrong = answers.worst
    what = "texts" if answers.task.is_retrieval else "videos"
    if not len(wrong):
        return [f"<h2>Worst {what}</h2>", f"<p>The right answer is first for all {what}.</p>"]
    card = _text_card if answers.task.is_retrieval else _video_card
    cards = [f"<div class=card>{card(answers, q, pictures)}</div>" for q in wrong[:WORST].tolist()]
    note = (
        f"For {len(wrong)} of {len(answers.ranking.ranks)} {what} the right answer is not first. "
        f"The worst first{f', up to {WORST}' if len(wrong) > WORST else ''}; three frames of each "
        "video."
    )
    parts = [f"<h2>Worst {what}</h2>", f"<p class=soft>{note}</p>"]
    return [*parts, f"<div class=cards>{''.join(cards)}</div>"]


def _text_card(answers: Answers, q: int, pictures: Mapping[str, str]) -> str:
    task = answers.task
    right, first = task.videos[task.owners[q]], task.videos[answers.best[q, 0]]
    own, best = answers.right_scores[q], answers.best_scores[q, 0]
    return (
        f"<b>{_cut(task.texts[q])}</b>"
        f"<p>Right, but rank {answers.ranking.ranks[q]:g}, score {own:.4g}: {_cut(right)}</p>"
        f"{_picture(right, pictures)}"
        f"<p>Answered first, score {best:.4g}: {_cut(first)}</p>{_picture(first, pictures)}"
    )


def _video_card(answers: Answers, q: int, pictures: Mapping[str, str]) -> str:
    task = answers.task
    video, right = task.videos[q], task.classes[task.labels[q]]
    pairs = zip(answers.best[q].tolist(), answers.best_scores[q].tolist(), strict=True)
    best = "; ".join(f"{_cut(task.classes[i])} {score:.4g}" for i, score in pairs)
    own = f"rank {answers.ranking.ranks[q]:g}, score {answers.right_scores[q]:.4g}"
    above = f"<b>{_cut(right)}</b><p>{_cut(video)}: right class at {own}</p>"
    return f"{above}{_picture(video, pictures)}<p>Best scores: {best}</p>"


def _picture(video: str, pictures: Mapping[str, str]) -> str:
    if video not in pictures:
        return "<p class=soft>(no picture)</p>"
    alt = f"three frames of {_short(Path(video).name)}"
    return f'<img alt="{escaped(alt)}" src="{pictures[video]}">'


def _left_out(record: Mapping[str, Any]) -> list[str]:
    lines = [f"{escaped(f['error'])}" for f in record["failures"]]
    lines += [f"{_cut(name)}: not there" for name in record["missing"]]
    if not lines:
        return []
    shown = "".join(f"<li>{line}</li>" for line in lines[:_NAMES])
    more = f"<li>and {len(lines) - _NAMES} more</li>" if len(lines) > _NAMES else ""
    return [f"<h2>Videos that no figure counts: {len(lines)}</h2>", f"<ul>{shown}{more}</ul>"]


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escaped(k)}</td><td>{_cut(v)}</td></tr>" for k, v in facts.items())
    return f"<table class=facts>{rows}</table>"


def _cut(value: Any) -> str:
    """A name as HTML; one that is written from right to left turns nothing beside it round."""
    return f"<bdi>{escaped(_short(value))}</bdi>"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\u2026"
