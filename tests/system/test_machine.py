"""The record of the machine."""

import io
import platform

import pytest

from stan_infer.system.machine import machine_record


@pytest.mark.parametrize(
    ("cpuinfo", "name", "sets"),
    [
        (
            "model name : AMD EPYC\ncpu family : 26\nmodel : 2\nflags : fpu avx2 avx512_vnni\n"
            "\nmodel : 9\n",
            "AMD EPYC (family 26, model 2)",
            ["avx2", "avx512_vnni"],
        ),
        (
            "Features : fp asimd i8mm\nCPU implementer : 0x41\nCPU part : 0xd0c\n",
            f"{platform.processor() or platform.machine()} (implementer 0x41, part 0xd0c)",
            ["asimd", "i8mm"],
        ),
    ],
)
def test_processors_of_one_name_are_told_apart(monkeypatch, cpuinfo, name, sets):
    monkeypatch.setattr("builtins.open", lambda path: io.StringIO(cpuinfo))
    record = machine_record()
    assert record["cpu"] == name and record["instruction_sets"] == sets
