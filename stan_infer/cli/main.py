"""Run the program `stan-infer`: exit codes for every error, and for every signal that ends it."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import traceback
from contextlib import suppress
from itertools import takewhile
from typing import NoReturn

from stan_infer.errors import InputError, StanError, one_line
from stan_infer.system import kept
from stan_infer.system.signals import (
    EndedBySignal,
    end_in_words,
    end_on_signals,
    ended_by,
    ending,
)

# What writing to a standard stream raises that is a full disk or no stream at all.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def main() -> None:
    """Run the command line and exit with the documented code."""
    debug = "--debug" in takewhile(lambda word: word.startswith("-"), sys.argv[1:])
    completes = any(word.endswith("-completion") for word in sys.argv[1:2])
    _fill_closed_streams()
    # The interpreter looks for garbage once more before it ends, which with torch takes 0.4 s.
    atexit.register(gc.freeze)
    try:
        end_on_signals()
        kept.record()
        # Not above, because Ctrl-C may come while they are imported.
        from stan_infer.cli.app import app
        from stan_infer.system.cache_folder import keep_library_caches

        keep_library_caches()
        app(prog_name="stan-infer")
    except (KeyboardInterrupt, EndedBySignal) as e:
        _end(e.number if isinstance(e, EndedBySignal) else signal.SIGINT)
    except SystemExit as e:
        if not completes or e.code != 1:
            raise
        # typer said so in one line, but ends as with a bug of ours.
        _tell("error: run this in a shell that has completion: bash, zsh, fish or PowerShell")
        sys.exit(2)
    except Exception as e:
        if (number := ended_by()) is not None:
            _end(number)  # the error is what a library made of the signal
        if debug:
            traceback.print_exc()
        if isinstance(e, OSError) and (completes or e.errno in _FULL and e.filename is None):
            e = InputError(f"cannot write {e.filename or 'the output'}: {e.strerror or e}")
        if isinstance(e, StanError):
            _tell(f"error: {e}")
            sys.exit(e.exit_code)
        _tell(
            f"internal error: {type(e).__name__}: {one_line(str(e))}\n"
            "This is a bug of stan_infer; `stan-infer --debug ...` shows where."
        )
        sys.exit(1)
    finally:
        ending()


def _end(number: int) -> NoReturn:
    _tell(end_in_words(number))
    sys.exit(128 + number)


def _fill_closed_streams() -> None:
    """Put the null device in the place of a stream that is closed, as by `>&-`.

    Else its number would be that of the next file that is opened, and what is printed went there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            file = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(file.fileno(), True)  # to the processes that decode
            setattr(sys, name, file)


def _tell(text: str) -> None:
    with suppress(OSError):  # nobody reads it, as with 2>&1 | head, or there is no room for it
        print(text, file=sys.stderr)
