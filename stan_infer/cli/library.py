"""The commands `stan-infer library inspect | verify | migrate`."""

from __future__ import annotations

import typer

from stan_infer.cli.library_inspect import inspect
from stan_infer.cli.library_migrate import migrate
from stan_infer.cli.library_verify import verify
from stan_infer.cli.parsing import Command, Program

library = typer.Typer(
    name="library", cls=Program, no_args_is_help=True, help="Inspect, verify or migrate a library."
)
for command in (inspect, verify, migrate):
    library.command(cls=Command)(command)
