"""Faults seeded in the kernels' source, each of which must be seen by a comparison with fp64.

The mutant is the file with one text replaced, imported under another name; the comparisons are the
smallest of those in the other tests.
"""

import importlib.util
import sys

import pytest

from tests.conftest import ROOT
from tests.kernels.inputs import error, kernel_tests

LIMIT = 4e-6  # of fp32, as in inputs.TOLERANCE

# By file: what stands there, and what a mutant has. The module has the comparison, `tiny_FILE`.
FAULTS = [
    (module, name, *fault)
    for module in kernel_tests()
    for name, faults in getattr(module, "FAULTS", {}).items()
    for fault in faults
]


def load_mutant(name: str, before: str, after: str, folder):
    """The kernel file with one text replaced, its operations in a namespace of their own."""
    source = (ROOT / "kernels" / f"{name}.py").read_text()
    assert source.count(before) >= 1, (
        f"{name}.py has no {before!r}: the seeded fault is out of date"
    )
    mutant = source.replace(before, after).replace('"stan_infer::', f'"mutant_{folder.name}::')
    mutant = mutant.replace("torch.ops.stan_infer.", f"torch.ops.mutant_{folder.name}.")
    path = folder / f"{name}.py"
    path.write_text(mutant)
    spec = importlib.util.spec_from_file_location(f"mutant_{folder.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def worst(module, check) -> float:
    return max(error(got, wanted) for got, wanted in check(module))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f[1]}: {f[3][:30]}")
def test_seeded_fault_is_seen(fault, tmp_path):
    tests, name, before, after = fault
    folder = tmp_path / f"m{abs(hash(fault)) % 10**8}"
    folder.mkdir()
    module = load_mutant(name, before, after, folder)
    try:
        assert worst(module, getattr(tests, f"tiny_{name}")) > LIMIT
    except IndexError:
        pass  # the interpreter itself refused an address outside the tensor


@pytest.mark.parametrize(("tests", "name"), dict.fromkeys(f[:2] for f in FAULTS))
def test_the_same_comparison_passes_without_the_fault(tests, name, tmp_path):
    folder = tmp_path / f"sound_{name}"
    folder.mkdir()
    module = load_mutant(name, "\n", "\n", folder)
    assert worst(module, getattr(tests, f"tiny_{name}")) < LIMIT


def test_no_kernel_is_without_faults():
    files = {f.stem for f in (ROOT / "kernels").glob("*.py") if "@triton.jit" in f.read_text()}
    assert files - {name for _, name, _, _ in FAULTS} == {"tiles"}
    assert len(FAULTS) >= 45
