"""The command `stan-infer verify`."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.cli.given import parse_numbers, parse_settings, use_threads
from stan_infer.cli.options import (
    FramesEach,
    Json,
    Locked,
    Settings,
    Texts,
    Threads,
    VideosIfAny,
    Weights,
    fetched,
)
from stan_infer.engines.open import graph_engines
from stan_infer.system.outside_file import read_lines

_ENGINES = ", ".join(("eager", *graph_engines()))
_COLUMNS = {
    "stage": "stage",
    "pass": "pass",
    "max_rel": "differs",
    "tolerance": "allowed",
    "min_cos": "cosine",
    "words": "compared with",
}


def verify(
    context: typer.Context,
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            callback=fetched,
            help="The reference: a checkpoint, exported folder, .onnx or hf: name.",
        ),
    ],
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="B",
            callback=fetched,
            help="What is compared with A: one of the same, or a .plan. Without B, folder A is "
            "compared with its own golden data.",
        ),
    ] = None,
    videos: VideosIfAny = None,
    texts: Texts = None,
    frames: FramesEach = "1,2,12,33,64",
    engine_a: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Engine of A: {_ENGINES}.")
    ] = None,
    engine_b: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Engine of B: {_ENGINES}.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            help="Allowed difference, relative to the largest value (default: by precision).",
        ),
    ] = None,
    threads: Threads = None,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect", help="Name the block of the network that differs; A or B must be an export."
        ),
    ] = False,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    json: Json = False,
) -> None:
    """Compare two models, or one folder with its golden data.

    One folder alone: does it compute on this machine what its model did when it was exported?

    The exit code is 4 if they differ. A row of the table is a stage, and says what it was compared
    with. A fused graph is also compared with A weight by weight and operation by operation,
    recomputed in the graph's own precision, 8 bits included.

    Videos that cannot be read are named and left out; the exit code is then 2.
    """
    import sys

    from stan_infer.cli.report import print_json, print_table, say
    from stan_infer.errors import CheckError
    from stan_infer.system.result import silent
    from stan_infer.verification.verification import verify as run

    use_threads(context)
    record = run(
        a,
        b,
        videos,
        texts=read_lines(texts, "texts") if texts else None,
        frames=parse_numbers(frames, "--frames", 64),
        tolerance=tolerance,
        bisect=bisect,
        say=say if sys.stderr.isatty() else silent,
        engine_a=engine_a,
        engine_b=engine_b,
        settings=parse_settings(settings, weights) or None,
    ).record()
    for fault in record["known_faults"]:
        say(f"reported for this version of TensorRT: {fault['what']} ({fault['link']})")
    if json:
        print_json("verify", record)
    else:
        print_table([_cells(row) for row in record["stages"]], _COLUMNS)
    for failure in record["failures"]:
        say(f"error: {failure['error']}")
    if not record["pass"]:
        raise CheckError(_message(record))
    say(_agreement(record))
    if record["failures"]:
        say(f"{len(record['failures'])} videos could not be read and were not compared")
        raise typer.Exit(2)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the table. A cosine is cut off, so that none below 1 reads as 1."""
    cosine = row["min_cos"]
    shown = None if cosine is None else f"{math.floor(cosine * 1e6) / 1e6:.6f}"
    words = [row["note"] or "", row["reference"] or ""]
    words += [f"worst at {row['worst']}"] if row["worst"] else []
    words += [] if row["agreement"] is None else [f"{100 * row['agreement']:.4g} % agree"]
    told = "; ".join(filter(None, words)) or None
    passed = {True: "yes", False: "NO", None: None}[row["pass"]]
    return {**row, "pass": passed, "min_cos": shown, "words": told}


def _agreement(record: dict[str, Any]) -> str:
    """What a record without a fault shows, and what it does not."""
    a, b = record["a"], record["b"]
    text = f"{b['name']} ({b['precision']}, engine {b['engine']}) agrees with {a['name']}"
    bound = next((r for r in record["stages"] if r["stage"] == "bound"), None)
    if a["kind"] == "golden data":
        shown = ", as far as 8 bits show it" if b["precision"] in EIGHT_BITS else ""
        text += (
            f": it is undamaged and computes here what its golden data say{shown}; whether it is "
            f"the checkpoint's network, stan-infer verify CKPT {b['name']} says"
        )
    elif bound and bound["pass"] and bound["min_cos"] is not None:
        text += (
            f"; 8 bits are compared with fp32 in stage bound alone, on {bound['cases']} clips, "
            "which shows a fault and not the accuracy on your data: for that, stan-infer eval"
        )
    elif {a["precision"], b["precision"]} & set(EIGHT_BITS) and "weights" in record["not_compared"]:
        video = next(r for r in record["stages"] if r["stage"] == "video tower")
        text += f", as far as 8 bits held to {video['tolerance']} of the largest value show it"
    absent = ", ".join(record["not_compared"])
    return text + (f"; not compared: {absent}" if absent else "")


def _message(record: dict[str, Any]) -> str:
    names = " and ".join(record[side]["name"] for side in "ab")
    first = record["first_failed"]
    if first is None:
        return f"{names} have no stage in common: nothing was compared"
    row = next(r for r in record["stages"] if r["stage"] == first)
    text = f"{names} differ first in stage '{first}'"
    if row["worst"]:
        text += f" ({row['worst']})"
    text += f": {row['note']}" if row["note"] else ""
    if not row["note"]:
        text += f": {row['max_rel']:.2e} of the largest value; allowed is {row['tolerance']:.0e}"
    found = record["bisect"].get(first)
    if found and found["block"]:
        operation = found["operation"]
        text += f"; found in the block that ends with {found['block']}"
        text += f", at operation {operation}" if operation not in (None, found["block"]) else ""
    elif found:
        text += f"; no block is named: {found['reason'] or 'none differs alone'}"
    others = [
        f"{r['stage']}: {r['worst']} {r['note']}" if r["stage"] == "weights" else r["stage"]
        for r in record["stages"]
        if r["pass"] is False and r["stage"] != first
    ]
    return text + (f" (also: {', '.join(others)})" if others else "")
