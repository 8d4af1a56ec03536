"""How much memory reading one hostile file takes, in a process of its own."""

from tests.conftest import ROOT, python

_CODE = """
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
    took, _, error = python("-c", reader + _CODE, path, *sound, cwd=ROOT).stdout.partition(" ")
    return int(took), error
