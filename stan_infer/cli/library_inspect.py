"""The command `stan-infer library inspect`."""

from __future__ import annotations

from typing import Any

from stan_infer.cli.options import Json, LibraryFolder


def inspect(library: LibraryFolder, json: Json = False) -> None:
    """Show what a library holds, and what made it.

    Files that are there and have no vectors are listed with the reason.
    """
    from stan_infer.cli.report import print_facts, print_json, print_table
    from stan_infer.library.inspect_library import inspect_library

    found = inspect_library(library)
    if json:
        print_json("library-inspect", found.to_dict())
        return
    passport = found.passport
    counts = ("rows", "width", "files", "contents", "gone", "waiting", "kept", "unused", "bytes")
    record: dict[str, Any] = {"library": str(library), **{k: getattr(found, k) for k in counts}}
    record |= {"failed": len(found.failed), "batch": passport["batch"]}
    record["windows"] = passport["windows"]
    facts = {k: v for k, v in sorted(passport["facts"].items()) if v is not None}
    print_facts(record | {f"  {k}": _short(v) for k, v in facts.items()})
    print_table([{"failed": path, "reason": why} for path, why in found.failed.items()])


def _short(value: Any) -> Any:
    from stan_infer.cli.layout import shortened

    text = shortened(str(value), 80)
    return value if text == str(value) else text
