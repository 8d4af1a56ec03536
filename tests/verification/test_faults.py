"""Each planted fault is caught and its block named; pairs without a fault pass."""

import shutil
from collections import Counter

import pytest

from stan_infer.verification.inputs import write_videos
from tests.verification.folders import ENGINES, Bases, Folder
from tests.verification.planted import FAULTS, FILE, NUMBERS_OR_FILE
from tests.verification.records import verify

QUICK = {  # each stage, and each way in which a graph can be wrong; the table as a whole is slow
    "heads exchanged in one out weight",
    "last row of the time table repeated",
    "one element of a weight set to 0",
    "epsilon 1e-6 in all norms",
    "a residual add removed",
    "clips mixed for B = 32",
    "other numbers for T = 7",
    "causal mask dropped in one layer",
    "manifest resizes to another side than its model",
    "manifest has another mean for a uint8 graph",
    "manifest has another temperature",
    "activation scale x 1.1, int8",
    "weights in 4 bits",
    "a linear in 8 bits, int8",
    "fp32 head x 1.1, int8",
    "smoothing left out",
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"), 20)[1:4]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return Bases(tmp_path_factory.mktemp("bases"))


def tried(fault, bases, videos, place):
    """Plant a fault and verify; return whether it is caught, whether it is named, and a row."""
    model, whole = bases[fault.base]
    shutil.copytree(whole, place)
    folder = Folder(place, model, bases)
    fault.change(folder)
    folder.save()
    options = {"videos": videos[:2], "frames": (5,), "engine_b": ENGINES.get(fault.base)}
    record = verify(model, folder.path, bisect=True, **options)
    first = record["first_failed"]
    found = record["bisect"].get(first, {})
    # A fault that only the hash or the config shows would not test the comparison of numbers.
    caught = not record["pass"] and first not in (None, "files")
    # Numbers or the file tell one first, as the CPU's arithmetic in 8 bits has it.
    stages = {fault.stage, FILE} if fault.name in NUMBERS_OR_FILE else {fault.stage}
    named = first in stages and found.get("block") == fault.block
    row = next((r for r in record["stages"] if r["stage"] == first), {})
    word = "named " if named else "CAUGHT" if caught else "MISSED"
    told = [first, row.get("max_rel"), found.get("block"), fault.block, found.get("operation")]
    told += [found.get("error"), row.get("note") or found.get("reason")]
    return caught, named, f"{word} {fault.base}: {fault.name}: {', '.join(map(str, told))}"


def test_the_table():
    assert len(FAULTS) >= 60 and len({f.kind for f in FAULTS}) >= 20
    assert {f.base for f in FAULTS} >= {"uint8", "fp16", "bf16", "int8", "fp8"}
    assert max(Counter(f.name for f in FAULTS).values()) == 1


def check(faults, bases, videos, place):
    made = [tried(f, bases, videos, place / str(i)) for i, f in enumerate(faults)]
    table = "\n".join(row for *_, row in made)
    print(table)
    assert all(caught and named for caught, named, _ in made), table


def test_some_faults_are_caught_and_named(bases, videos, tmp_path):
    few = [f for f in FAULTS if f.name in QUICK]
    assert len(few) == len(QUICK)
    check(few, bases, videos, tmp_path)


# Parts of about as long, each of a few folders.
PARTS = {
    "the first half in fp32": lambda f: f.base == "uint8" and FAULTS.index(f) % 2 == 0,
    "the second half in fp32": lambda f: f.base == "uint8" and FAULTS.index(f) % 2 == 1,
    "other forms and 16 bits": lambda f: f.base not in ("uint8", "int8", "fp8"),
    "int8": lambda f: f.base == "int8",
    "fp8": lambda f: f.base == "fp8",
}


@pytest.mark.parametrize("part", PARTS)
def test_planted_faults_are_caught_and_named(part, bases, videos, tmp_path):
    rest = [f for f in FAULTS if f.name not in QUICK]
    assert all(sum(is_in(f) for is_in in PARTS.values()) == 1 for f in rest)
    check([f for f in rest if PARTS[part](f)], bases, videos, tmp_path)
