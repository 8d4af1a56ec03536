"""Kernels are compiled in processes beside the one that times, and found by it."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.gpu.ahead import AHEAD, HERE, Ahead
from benchmarks.gpu.cases import Shape
from tests.conftest import ROOT, python


def meet(folder, name, others):
    """Say that it is here, and wait for the others."""
    Path(folder, name).write_text(str(os.getpid()))
    while not all(Path(folder, other).exists() for other in others):
        time.sleep(0.01)


def refuse(how):
    if how == "die":
        os._exit(1)
    raise ZeroDivisionError(f"no {how}\nand more")


@pytest.fixture
def ahead():
    made = []

    def make(compile):
        made.append(Ahead(compile, 2))
        return made[0]

    yield make
    made[0]._pool.shutdown(cancel_futures=True)


def test_two_at_once(ahead, tmp_path):
    """Either ends only when the other has begun."""
    jobs = ahead(meet)
    jobs.add("a", tmp_path, "a", ["b"])
    jobs.add("b", tmp_path, "b", ["a"])
    assert jobs.wait_for("a") == jobs.wait_for("b") == AHEAD
    assert len({p.read_text() for p in tmp_path.iterdir()} | {str(os.getpid())}) == 3
    assert jobs.wait_for("b") == jobs.wait_for("never given") == HERE


def test_what_the_compiler_refuses_is_said_and_what_it_kills_is_compiled_here(ahead):
    jobs = ahead(refuse)
    jobs.add("a", "luck")
    with pytest.raises(RuntimeError, match="^ZeroDivisionError: no luck$"):
        jobs.wait_for("a")
    jobs.add("b", "die")
    assert jobs.wait_for("b") == HERE
    jobs.add("c", "luck")
    assert jobs.wait_for("c") == HERE


ORPHANS = """
import os, sys
from tests.benchmarks.test_gpu_ahead import meet
from benchmarks.gpu.ahead import Ahead

if __name__ == "__main__":
    jobs = Ahead(meet, 2)
    jobs.add("a", sys.argv[1], "a", ["never"])
    meet(sys.argv[1], "parent", ["a"])
    os._exit(9)
"""


def test_they_end_with_the_process_that_times(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    folder = tmp_path / "met"
    folder.mkdir()
    python(script, folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, code=9)
    child = int((folder / "a").read_text())
    with suppress(OSError):  # it has ended
        while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)


JOBS = [("fc1", [128, 128, 64, 8, 3]), ("temporal", [16, 64, 0, 1, 1])]
COMPILE = """
import dataclasses, json, sys
import torch
from benchmarks.gpu.ahead import Ahead, compile_way
from benchmarks.gpu.cases import Shape

if __name__ == "__main__":
    jobs = Ahead(compile_way, 2)
    for choice, tile in json.loads(sys.argv[1]):
        jobs.add(choice, "sm90", dataclasses.asdict(Shape()), choice, "float16", tile)
    print([jobs.wait_for(choice) for choice, _ in json.loads(sys.argv[1])])
"""
FIND = """
import dataclasses, json, sys
import torch, triton
from triton.compiler.compiler import ASTSource
from benchmarks.gpu import cases, without_gpu
from benchmarks.gpu.tune import case_of
from stan_infer.kernels.tuned import Tile

def compiled_again(*_):
    raise RuntimeError("not in the cache")

ASTSource.make_ir = compiled_again
found = []
for choice, tile in json.loads(sys.argv[1]):
    # As at run time: tensors with memory and values.
    case = case_of(cases.Shape(), choice, cases.random(torch.float16, "cpu"))
    def find(kernel, *args, **options):
        found.append(kernel.warmup(*args, **options).asm["cubin"])
    with without_gpu.launches("sm90", find):
        dataclasses.replace(case, tile=Tile(*tile)).run()
print(len(found))
"""


def test_the_process_that_times_finds_what_was_compiled(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    jobs = json.dumps(JOBS)
    for name, text in (("compile", COMPILE), ("find", FIND)):
        (tmp_path / f"{name}.py").write_text(text)
    assert python(tmp_path / "compile.py", jobs, cwd=ROOT, env=env).stdout == "['ahead', 'ahead']\n"
    assert python(tmp_path / "find.py", jobs, cwd=ROOT, env=env).stdout == "2\n"
    other = json.dumps([("fc1", [64, 128, 64, 4, 3])])
    lost = python(tmp_path / "find.py", other, cwd=ROOT, env=env, code=1)
    assert "not in the cache" in lost.stderr
    assert Shape().rows == 2364  # the shape that both were given
