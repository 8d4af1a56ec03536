"""python -m benchmarks.tables --write | --check: the tables of the documents, from recorded runs.

The text between the markers `<!-- table:NAME -->` and `<!-- /table -->` of a document is generated
from benchmarks/results/, examples/motion/results.json and the catalogue of public checkpoints.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial

from benchmarks import split_k
from benchmarks.record import ROOT
from benchmarks.scale import scale_table
from benchmarks.tables import gpu, library, quality, speed
from stan_infer.checkpoints.catalogue import PUBLIC

FILES = (
    *("README.md", "BENCHMARKS.md", "CALIBRATION.md", "CHECKPOINTS.md"),
    *("docs/embed.md", "docs/scale.md"),
)


def catalogue_table() -> str:
    """The public checkpoints, as stan_infer/checkpoints/catalogue.py has them."""
    lines = ["| name | what | the paper's figure | test |", "|---|---|---|---|"]
    lines += [
        f"| `{p.name}` | {p.what} ([page]({p.source})) | {p.figure} | `{_HELD}` |" for p in PUBLIC
    ]
    return "\n".join(lines)


_HELD = "test_hub.py::test_names_of_the_catalogue_can_be_given"
TABLES: dict[str, Callable[[], str]] = {
    "catalogue": catalogue_table,
    "graphs": speed.graphs_table,
    "accuracy": quality.accuracy_table,
    "accuracy_reduced": partial(quality.accuracy_table, reduced=True),
    "repeat": speed.repeat_table,
    "outliers": quality.outliers_table,
    "quantisers": partial(quality.quantisers_table, "motion"),
    "quantisers_outliers": partial(quality.quantisers_table, "stan-b32"),
    "quantisers_b16": partial(quality.quantisers_table, "stan-b16"),
    "int8_speed": speed.int8_table,
    "sensitivity": quality.sensitivity_table,
    "engines": speed.engines_table,
    "engines_two": partial(speed.engines_table, threads=2),
    "load": speed.load_table,
    "shapes": speed.shapes_table,
    "embed": speed.embed_table,
    "stream": speed.stream_table,
    "hour": speed.hour_table,
    "scale": scale_table,
    "canaries": library.canaries_table,
    "embed_memory": library.memory_table,
    "embed_rate": library.embed_rate_table,
    "search": library.search_table,
    "serve": library.serve_table,
    "stores": library.stores_table,
    "indexes": library.indexes_table,
    "cpp": library.cpp_table,
    "motion": quality.motion_table,
    "packed": gpu.packed_table,
    "plans": speed.plans_table,
    "gpu": gpu.launches_table,
    "split_k": split_k.table,
    "aot": gpu.aot_table,
    "targets": gpu.targets_table,
}


def render(text: str) -> str:
    """Return `text` with every marked table generated anew."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- table:{match[1]} -->\n{TABLES[match[1]]()}\n<!-- /table -->"

    return re.sub(r"<!-- table:(\w+) -->.*?<!-- /table -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Write the tables, or fail if they differ from the recorded runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", action="store_true")
    group.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for name in FILES:
        now = (ROOT / name).read_text()
        wanted = render(now)
        if args.write:
            (ROOT / name).write_text(wanted)
        elif now != wanted:
            sys.exit(
                f"{name} does not match the recorded runs: python -m benchmarks.tables --write"
            )
