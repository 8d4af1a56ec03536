"""Functions that several benchmarks use: options, `stan-infer` commands, models, clips."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.motion import clips
from examples.motion.evaluate import SEED
from stan_infer.checkpoints.presets import preset
from stan_infer.export.export_model import export_model
from stan_infer.network.model import Stan, init_random

GRAPHS = ("reference", "fused")


def options(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """Parse one option per default, of its type; a tuple stands for comma separated values."""
    parser = argparse.ArgumentParser(description=doc)
    for name, default in defaults.items():
        many = isinstance(default, tuple)
        kind = type(default[0] if many else default)
        parser.add_argument(
            f"--{name}",
            type=(lambda text, kind=kind: tuple(map(kind, text.split(",")))) if many else kind,
            default=default,
        )
    return parser.parse_args()


def stan_infer(
    *arguments: str | Path, python: str = sys.executable, codes: Collection[int] = (0,)
) -> list[dict[str, Any]]:
    """Run a stan-infer command with --json; return its records. codes: that it may end with."""
    command = [python, "-m", "stan_infer", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in codes:
        raise subprocess.CalledProcessError(done.returncode, command)
    return [json.loads(line) for line in done.stdout.splitlines()]


def random_model(name: str, frames: int | None = None) -> Stan:
    """A preset with seeded random weights, as speed does not depend on weights."""
    config = preset(name)
    config = dataclasses.replace(config, frames=frames) if frames else config
    return init_random(Stan(config), seed=0).eval().requires_grad_(False)


def export_video(model: Stan, path: Path, frames: int, graph: str = "fused") -> None:
    """Export the video tower with a narrow range of T, because the export checks every size."""
    limits = (max(frames - 1, 1), frames)
    export_model(model, path, graph=graph, tower="video", frames=limits, batch=1)


@contextmanager
def both_graphs(model: Stan, frames: int) -> Iterator[dict[str, Path]]:
    """Export the reference and the fused graph to folders that exist inside the context."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {graph: Path(folder) / graph for graph in GRAPHS}
        for graph, path in paths.items():
            export_video(model, path, frames, graph)
        yield paths


def write_clips(folder: Path, count: int, bank: str) -> None:
    """Write clips of the motion demo for calibration; bank: textures, "train" or "held-out"."""
    folder.mkdir()
    textures = clips.texture_bank(bank)
    for i in range(count):
        clips.write_mp4(folder / f"{i:03}.mp4", clips.held_out_clip(SEED + 1, i, textures).frames)
