"""The command `stan-infer doctor`."""

from __future__ import annotations

from stan_infer.cli.options import Json


def doctor(json: Json = False) -> None:
    """Show what is installed, and try what runs here.

    Every engine and decoder is tried on a small input.
    """
    from stan_infer.cli.report import print_facts, print_json, print_table, say
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
        say("")
        rows = [{"package": k, "version": v or "not installed"} for k, v in versions.items()]
        print_table(rows)
        say("")
        columns = ["name", "device", "works", "reason", "help"]
        print_table([{"reason": "", "help": "", **r} for r in engines + decoders], columns)
    if found:
        raise CheckError("; ".join(found))
