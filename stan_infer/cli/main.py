"""Run the program `stan-infer`: exit codes for every error, and for every signal that ends it."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from typing import NoReturn

from stan_infer.errors import StanError, one_line
from stan_infer.system import kept
from stan_infer.system.signals import (
    EndedBySignal,
    end_in_words,
    end_on_signals,
    ended_by,
    ending,
)


def main() -> None:
    """Run the command line and exit with the documented code."""
    debug = "--debug" in sys.argv
    # The interpreter looks for garbage once more before it ends, which with torch takes 0.4 s.
    atexit.register(gc.freeze)
    try:
        end_on_signals()
        kept.record()
        # Not above, because Ctrl-C may come while they are imported.
        from stan_infer.cli.app import app
        from stan_infer.system.cache_folder import keep_library_caches

        keep_library_caches()
        app()
    except (KeyboardInterrupt, EndedBySignal) as e:
        _end(e.number if isinstance(e, EndedBySignal) else signal.SIGINT)
    except Exception as e:
        if (number := ended_by()) is not None:
            _end(number)  # the error is what a library made of the signal
        if debug:
            raise
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


def _end(number: int) -> NoReturn:
    print(end_in_words(number), file=sys.stderr)
    sys.exit(128 + number)
