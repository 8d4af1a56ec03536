"""Append measured rows to benchmarks/results/, each with its machine, versions, commit and date."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from stan_infer.system.machine import installed_versions, machine_record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def append_rows(kind: str, rows: list[dict[str, Any]]) -> Path:
    """Append rows of one kind ("engines", "load", ...) that were just measured; return the file."""
    machine = machine_record()
    name = re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']}-{machine['cores']}-cores".lower())
    path = RESULTS / f"{name.strip('-')}.jsonl"
    path.parent.mkdir(exist_ok=True)
    names = ("torch", "onnxruntime", "openvino", "numpy")
    versions = {k: v for k, v in installed_versions().items() if k in names}
    common = {
        "kind": kind,
        "machine": machine,
        "versions": versions,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }
    with path.open("a") as f:
        for row in rows:
            f.write(json.dumps({**common, **row}, sort_keys=True) + "\n")
    return path


def read_rows(kind: str) -> list[dict[str, Any]]:
    """Rows of one kind from every machine, oldest first."""
    rows = []
    for path in sorted(RESULTS.glob("*.jsonl")):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    return [r for r in rows if r["kind"] == kind]


def commit() -> str:
    """Commit of the code that ran, with "-dirty" if files other than recorded rows have changed.

    "unknown" without git or a repository.
    """
    if not (ROOT / ".git").exists():
        return "unknown"  # a copy, perhaps within another repository
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
    return (head or "unknown") + ("-dirty" if changed else "")


def _git(*command: str) -> str:
    command = ("git", *command)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""  # git is not installed
    return done.stdout.strip()
