"""The program `stan-infer`: its commands, and the options before them."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from stan_infer import __version__
from stan_infer.cli.bench import bench
from stan_infer.cli.calibrate import calibrate
from stan_infer.cli.convert import convert
from stan_infer.cli.doctor import doctor
from stan_infer.cli.embed import embed
from stan_infer.cli.eval import eval
from stan_infer.cli.export import export
from stan_infer.cli.inspect import inspect
from stan_infer.cli.library import library
from stan_infer.cli.parsing import HELP_WIDTH, Command, Program
from stan_infer.cli.run import run
from stan_infer.cli.search import search
from stan_infer.cli.serve import serve
from stan_infer.cli.verify import verify
from stan_infer.cli.watch import watch
from stan_infer.errors import one_line

app = typer.Typer(
    name="stan-infer",
    cls=Program,
    context_settings={"max_content_width": HELP_WIDTH},
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run trained STAN and Mug-STAN video-text checkpoints anywhere.",
    epilog="`stan-infer COMMAND --help` shows the options of a command, and examples.\n\n"
    "Exit codes: 0 done, 1 a bug of ours, 2 bad input, 3 a package or device is missing, "
    "4 a check failed, 130 interrupted.",
)
for command in (
    inspect, run, watch, embed, search, serve, eval, export, calibrate, verify, convert, bench,
    doctor,
):  # fmt: skip
    app.command(cls=Command)(command)
app.add_typer(library)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"stan-infer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log what is done.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, and log more.")] = False,
) -> None:
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("stan_infer").setLevel(level)


class _OneLine(logging.Formatter):
    """Messages in one line that a terminal shows as it is: names in them are strangers'."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message without control characters; a traceback behind it keeps its lines."""
        return one_line(super().formatMessage(record))
