"""What the fuzzers share: inputs by number and seed, what came of them, the command line."""

import argparse
import dataclasses
import os
import random
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass
class Found:
    """What came of the inputs: how many ended how, the slowest, and those that failed."""

    split: Counter[str] = dataclasses.field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    failed: list[int] = dataclasses.field(default_factory=list)
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)


def run_inputs(
    inputs: range, seed: int, one: Callable[[random.Random], tuple[str, Callable[[], str]]]
) -> Found:
    """Run inputs, failures counted with where they came from.

    one: makes one input and returns its kind, and what reads it and says how that ended. A single
    input raises what it raises.
    """
    found = Found()
    for i in inputs:
        name, read = one(random.Random(f"{seed}:{i}"))
        begin = time.perf_counter()
        try:
            outcome = read()
        except Exception as e:
            if len(inputs) == 1:
                raise
            frames = traceback.extract_tb(e.__traceback__)[::-1]
            at = next((f for f in frames if "/tests/" not in f[0]), None)
            where = f"{os.path.basename(at.filename)}:{at.lineno}" if at else ""
            found.reasons[f"{name}: {type(e).__name__} at {where}: {str(e)[:70]}"] += 1
            found.failed.append(i)
            outcome = "INTERNAL ERROR"
        found.slowest = max(found.slowest, (time.perf_counter() - begin, i))
        found.split[f"{name.partition(' ')[0]:12} {outcome}"] += 1
    return found


def command_line(doc: str | None, fuzz: Callable[[Path, range, int, str | None], Found]) -> int:
    """Run a fuzzer as its options say, in a temporary folder; 1 where something failed."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this one input alone")
    parser.add_argument("--kind", help="keep to one kind of file, as manifest")
    options = parser.parse_args()
    one = options.only
    first = options.first if one is None else one
    inputs = range(first, first + (options.inputs if one is None else 1))
    memory = Path("/dev/shm")  # a folder in memory, where there is such a place
    base = memory if os.access(memory, os.W_OK) else None
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=base) as folder:
        found = fuzz(Path(folder), inputs, options.seed, options.kind)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(inputs)} inputs, {seconds:.0f} s, peak {peak:.0f} MiB")
    print(f"slowest {found.slowest[0]:.2f} s (input {found.slowest[1]})")
    for name, count in sorted(found.split.items()):
        print(f"{count:8d}  {name}")
    for reason, count in found.reasons.most_common():
        print(f"{count:8d}  {reason}")
    if found.failed:
        print(f"failed: {' '.join(map(str, found.failed[:50]))}")
    return bool(found.failed)
