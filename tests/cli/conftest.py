"""Run the command line in this process: (exit code, stdout, stderr)."""

import json
import sys
from dataclasses import dataclass

import pytest

from stan_infer.checkpoints.load import load_model, save_model
from stan_infer.checkpoints.presets import preset
from stan_infer.cli.main import main
from stan_infer.network.model import Stan, init_random
from tests.exported import exported


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def cli(monkeypatch, capsys):
    def run(*args) -> Done:
        monkeypatch.setattr(sys, "argv", ["stan-infer", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(code, out, err)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint with CLIP's vocabulary and 64-pixel frames, random weights."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_model(init_random(Stan(preset("stan-tiny")), seed=3), path)
    return path


@pytest.fixture(scope="session")
def artefact(checkpoint):
    return exported(load_model(checkpoint))
