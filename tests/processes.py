"""What runs in a process of its own: readers whose memory is measured, several commands."""

import json
import re
from contextlib import suppress
from pathlib import Path

from tests.conftest import ROOT, python

_MEASURE = """
import re, sys
from pathlib import Path
from stan_infer.errors import InputError

def attempt(name):
    try:
        read(Path(name))
    except InputError as e:
        return str(e)[:500]

def peak():
    # Not getrusage: its peak counts the parent's, which was there before exec.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

hostile, *sound = sys.argv[1:]
for name in sound:
    attempt(name)
before = peak()
error = attempt(hostile)
print(peak() - before, error)
"""


def grown(reader, path, *sound) -> tuple[int, str]:
    """Bytes by which the peak grows, and the InputError's text.

    reader: code that defines `read`, a function of a path. sound: files that are read before, so
    that what their reading imports and takes does not count.
    """
    took, _, error = python("-c", reader + _MEASURE, path, *sound, cwd=ROOT).stdout.partition(" ")
    return int(took), error


def children(pid) -> list[int]:
    """Child processes of `pid`; none where there is no /proc. Not every kernel lists them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # one that ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def has_ended(pid) -> bool:
    """Whether an orphan runs no more; in a container nobody may take note of its end (a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


_COMMANDS = """
import json, sys
from stan_infer.cli.main import main

for words in json.loads(sys.argv[1]):
    sys.argv, code = ["stan-infer", *words], 0
    try:
        main()
    except SystemExit as e:
        code = e.code
    print(f"=== {code}", file=sys.stderr, flush=True)
"""


def run_commands(commands, before="", **options) -> list[tuple[str, str]]:
    """Run command lines one after the other; return standard error and exit code of each.

    before: code that runs first.
    """
    lines = json.dumps([[*map(str, words)] for words in commands])
    done = python("-c", before + _COMMANDS, lines, **options)
    return re.findall(r"(.*?)=== (.*?)\n", done.stderr, re.DOTALL)
