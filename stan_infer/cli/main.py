"""The program `stan-infer`: its commands, and exit codes for every error that reaches it."""

from __future__ import annotations

import atexit
import gc
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
from stan_infer.cli.run import run
from stan_infer.cli.verify import verify
from stan_infer.errors import StanError, one_line
from stan_infer.system.cache_folder import keep_library_caches
from stan_infer.system.signals import EndedBySignal, end_on_signals, ended_by, ending

app = typer.Typer(
    name="stan-infer",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run trained STAN and Mug-STAN video-text checkpoints anywhere.",
    epilog="Exit codes: 0 done, 1 a bug of ours, 2 bad input, 3 a package or device is missing, "
    "4 a check failed.",
)
for command in (inspect, run, embed, eval, export, calibrate, verify, convert, bench, doctor):
    app.command()(command)


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


def main() -> None:
    """Run the command line and exit with the documented code."""
    debug = "--debug" in sys.argv
    # The interpreter looks for garbage once more before it ends, which with torch takes 0.4 s.
    atexit.register(gc.freeze)
    try:
        end_on_signals()
        keep_library_caches()
        app()
    except (KeyboardInterrupt, EndedBySignal):
        sys.exit(ended_by() or 130)
    except Exception as e:
        if debug:
            raise
        if (code := ended_by()) is not None:
            sys.exit(code)  # the error is what a library made of the signal
        if isinstance(e, StanError):
            print(f"error: {e}", file=sys.stderr)
            sys.exit(e.exit_code)
        print(
            f"internal error: {type(e).__name__}: {one_line(str(e))}\n"
            "This is a bug of stan_infer; `stan-infer --debug ...` shows where.",
            file=sys.stderr,
        )
        sys.exit(1)
    finally:
        ending()
