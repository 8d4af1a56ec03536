"""Run the command line in this process."""

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
    """Run a command. code: its exit code, or several that are right; says: a part of stderr."""

    def run(*args, code=0, says="") -> Done:
        monkeypatch.setattr(sys, "argv", ["stan-infer", *map(str, args)])
        ended = 0
        try:
            main()
        except SystemExit as e:
            ended = e.code or 0
        out, err = capsys.readouterr()
        assert ended in (code if isinstance(code, tuple) else (code,)), (ended, args, out, err)
        assert "Traceback" not in err and says in err, err
        return Done(ended, out, err)

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
