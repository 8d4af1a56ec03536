"""Tables of accuracy: of the demo, and of models in 8 bits."""

from __future__ import annotations

import json
from textwrap import shorten

from benchmarks.record import ROOT
from benchmarks.tables.markdown import (
    NOT_MEASURED,
    Row,
    by_machine,
    last_of,
    machine_line,
    markdown,
    newest,
)
from stan_infer.evaluation.metrics import paired_interval


def accuracy_table(reduced: bool = False) -> str:
    """Accuracy of the demo: the newest run of each engine and precision.

    reduced: only the baseline and precisions other than fp32.
    """
    lines = []
    rows = [
        r
        for r in newest("accuracy", "engine", "precision")
        if not reduced or r["engine"] == "eager" or r["precision"] != "fp32"
    ]
    if not rows:
        return NOT_MEASURED
    for r in rows:
        words = r["precision"]
        if words in ("fp16", "bf16") and r["session"].get("arithmetic") == "f32":
            words += " weights in fp32 arithmetic"
        lines.append(
            f"{r['engine']}, {words} | {{:.1f}} % ({{:.1f}} to {{:.1f}}) ".format(
                r["motion_top1"], *r["motion_interval"]
            )
            + f"| {_against_baseline(r)} | {r['caption_top1']:.1f} %"
        )
    head = "engine, precision | motion, of 10 | lost (95 %) | agrees | caption, of 400"
    return machine_line(*rows) + markdown(head, lines)


def _against_baseline(row: Row) -> str:
    """What was lost, and how often the answer is the same; of the baseline neither."""
    if (row["engine"], row["precision"]) == ("eager", "fp32"):
        return "baseline | -"
    low, high = (100 * x for x in paired_interval(*_changed(row), row["clips"]))
    return f"{row['motion_loss']:.2f} ({low:.2f} to {high:.2f}) | {row['motion_agreement']:.2f} %"


def _changed(row: Row) -> tuple[int, int]:
    """How many clips are right in the baseline alone, and in this row alone."""
    changed = round((100 - row["motion_agreement"]) / 100 * row["clips"])
    lost = (changed + round(row["motion_loss"] / 100 * row["clips"])) // 2
    return lost, changed - lost


def motion_table() -> str:
    """Held-out accuracy of the demo checkpoint."""
    path = ROOT / "examples" / "motion" / "results.json"
    if not path.is_file():
        return NOT_MEASURED
    from examples.motion.evaluate import table

    r = json.loads(path.read_text())
    made = f"{r['clips']} clips of seed {r['seed']}, {r['date']}, {r['cpu']}, torch {r['torch']}:"
    return f"{made}\n\n{table(r)}"


def outliers_table() -> str:
    """Models with outlier channels, smoothed and not: the newest run of each on each machine."""
    head = "model, INT8 | smallest cosine | file of fp32 | linears in 8 bits"
    tables = []
    for measured in by_machine("outliers"):
        rows, lines = last_of(measured, "model", "smooth"), []
        for r in sorted(rows, key=lambda r: (r["model"], not r["smooth"])):
            form = "smoothed" if r["smooth"] else "not smoothed"
            count = f"{r['linears'] - len(r['kept'])} of {r['linears']}"
            sizes = f"{r['cosine']:.5f} | {r['file_ratio']:.2f}x | {count}"
            lines.append(f"{r['model']}, {form} | {sizes}")
        tables.append(machine_line(*rows) + markdown(head, lines))
    return "\n\n".join(tables) or NOT_MEASURED


def quantisers_table(model: str) -> str:
    """Our calibration beside other tools on one model: the newest run of each.

    With labels the answers have a table of their own, as one table would be wider than a page.
    """
    rows = newest("quantisers", "tool", model=model)
    if not rows:
        return NOT_MEASURED
    cosines, costs = "smallest cosine | mean", "of fp32's speed | file | seconds | peak MiB"
    head = f"INT8 by | {cosines} | {costs}"
    parts = [markdown(head, (f"{r['tool']} | {_cosines(r)} | {_costs(r)}" for r in rows))]
    if any("accuracy" in r for r in rows):
        answers = "motion, of 10 | lost, gained | agrees"
        parts = [
            markdown(
                f"INT8 by | {answers} | {cosines}",
                (f"{r['tool']} | {_answers(r)} | {_cosines(r)}" for r in rows),
            ),
            markdown(f"INT8 by | {costs}", (f"{r['tool']} | {_costs(r)}" for r in rows)),
        ]
    for r in rows:
        if reason := r.get("failed") or r.get("refused"):
            what = (
                "wrote no file" if "failed" in r else "wrote a file that ONNX Runtime does not run"
            )
            parts.append(f"{r['tool']} {what}: `{shorten(reason, 110, placeholder=' ...')}`")
    return machine_line(*rows) + "\n\n".join(parts)


def _answers(r: Row) -> str:
    if "accuracy" not in r:
        return "- | - | -"
    return f"{r['accuracy']:.2f} % | {r['lost']}, {r['gained']} | {r['agreement']:.2f} %"


def _cosines(r: Row) -> str:
    return f"{r['cosine']:.5f} | {r['mean_cosine']:.5f}" if "cosine" in r else "- | -"


def _costs(r: Row) -> str:
    speed = "- | -"
    if "speed" in r:
        speed = f"{r['speed']:.2f}x"
        if r["tool"] != "fp32":  # the baseline
            speed += f" ({r['speed_low']:.2f} to {r['speed_high']:.2f})"
        speed += f" | {r['file_ratio']:.2f}x"
    spent = f"{r['seconds']:.1f} | {r['peak_mib']:.0f}" if "seconds" in r else "- | -"
    return f"{speed} | {spent}"


def sensitivity_table() -> str:
    """The linears of the demo that cost most when each alone is in INT8: the newest run."""
    rows = newest("calibration", "precision", precision="int8")
    if not rows:
        return NOT_MEASURED
    worst = sorted(rows[-1]["sensitivity"], key=lambda r: -r["error"])
    lines = [f"`{r['linear']}` | {r['error']:.4f}" for r in worst[:5]]
    lines.append(f"median of {len(worst)} | {worst[len(worst) // 2]['error']:.4f}")
    head = "linear alone in INT8 | relative error of the embedding"
    return machine_line(rows[-1]) + markdown(head, lines)
