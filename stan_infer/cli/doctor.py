"""The command `stan-infer doctor`."""

from __future__ import annotations

from typing import Any

from stan_infer.cli.options import Json


def doctor(json: Json = False) -> None:
    """Show what is installed, and try what runs here.

    Every engine and decoder is tried on a small input.
    """
    from stan_infer.cli.report import print_facts, print_json, print_lines, print_table
    from stan_infer.engines.trials import try_decoders, try_engines
    from stan_infer.errors import CheckError
    from stan_infer.system.machine import faults, installed_versions, machine_record

    versions = installed_versions()
    engines, decoders, found = try_engines(), try_decoders(), faults(versions)
    if json:
        record = {
            "machine": machine_record(),
            "versions": versions,
            "engines": engines,
            "decoders": decoders,
            "faults": found,
        }
        print_json("doctor", record)
    else:
        print_facts(machine_record())
        print_lines("")
        rows = [{"package": k, "version": v or "not installed"} for k, v in versions.items()]
        print_table(rows)
        print_lines("")
        print_table([_row(record) for record in engines + decoders])
    if found:
        raise CheckError("; ".join(found))


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """An engine or decoder for the table; what helps is told once."""
    reason, remedy = record.get("reason", ""), record.get("help", "")
    words = reason if not remedy or remedy in reason else f"{reason}. Try: {remedy}"
    shown = {name: record[name] for name in ("name", "device", "works")}
    return {**shown, "what is missing, and what helps": words}
