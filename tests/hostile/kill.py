"""SIGKILL while results are replaced: python -m tests.hostile.kill --kills 200 --seed 0.

After each kill the old or the new result must be whole at its place, by the product's own readers;
the next run must end well and leave no temporary file of either. Half of the kills come at a random
moment, half just before a random call that makes, renames or removes a file.
"""

import argparse
import collections
import dataclasses
import json
import mmap
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stan_infer.system import atomic, temporary

CALLS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.listdir"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
COMMANDS = ("export", "calibrate", "embed", "eval")
Done = collections.namedtuple("Done", ("code", "calls", "said"))


class Place:
    """A folder with inputs, one earlier result of each command, and a TMPDIR of its own."""

    def __init__(self, folder: Path, checkpoint: Path, videos: Path) -> None:
        self.folder, self.checkpoint, self.videos = folder, checkpoint, videos
        self.results, self.tmp = folder / "results", folder / "tmp"
        self.source, self.cache = folder / "source", folder / "cache"
        self.results.mkdir()
        self.tmp.mkdir()
        rows = "".join(f"{p.name},{p.stem}\n" for p in sorted(videos.iterdir()))
        (folder / "labels.csv").write_text(f"video,label\n{rows}")
        done = self.run(["export", checkpoint, "-o", self.source])
        assert done.code == 0, done.said
        self.turns = dict.fromkeys(COMMANDS, 0)
        self.cost: dict[str, tuple[float, int]] = {}
        for name in COMMANDS:
            start = time.monotonic()
            done = self.run(self.command(name))
            assert done.code == 0, done.said
            self.cost[name] = time.monotonic() - start, done.calls

    def command(self, name: str) -> list:
        """The command line of a turn; turns differ in something that the result tells."""
        turn = self.turns[name]
        if name == "export":
            return [name, self.checkpoint, "-o", self.results / name, "--license", f"L{turn}"]
        if name == "calibrate":
            seed = ["--seed", turn, "--samples", 2, "--force", "--threads", 1]
            return [name, self.source, "--videos", self.videos, "-o", self.results / name, *seed]
        if name == "embed":
            files = sorted(self.videos.iterdir())[: 1 + turn % 2]
            return [name, self.source, *files, "-o", self.results / "embed.npz"]
        data = ["--dataset", "recognition", "--annotations", self.folder / "labels.csv"]
        new = ["--frames", 1 + turn % 64, "--cache", self.cache]  # features that are not there yet
        return [name, self.source, *data, "--videos", self.videos, *new]

    def turn_of(self, name: str) -> int | None:
        """Check what lies there and return the turn that wrote it; a cache has none."""
        from stan_infer.artefacts.calibration_file import read_calibration
        from stan_infer.artefacts.folder import read_artefact
        from stan_infer.evaluation.feature_cache import _read

        if name == "export":
            return int(read_artefact(self.results / name).manifest["licence"][1:])
        if name == "calibrate":
            return int(read_calibration(read_artefact(self.results / name).path)["seed"])
        if name == "embed":
            with np.load(self.results / "embed.npz", allow_pickle=False) as z:
                arrays = {k: z[k] for k in z.files}
            assert np.isfinite(arrays["embeddings"]).all()
            return len(arrays["paths"])
        for part in self.cache.glob("*/*.npz"):
            assert _read(part), f"{part} is damaged"
        for key in self.cache.glob("*/key.json"):
            json.loads(key.read_text())
        return None

    def kill(self, name: str, rng: random.Random, at_call: bool) -> str:
        """One kill, its checks and the run after it; return which result lay there."""
        seconds, calls = self.cost[name]
        before = self.turn_of(name)
        self.turns[name] += 1
        command = self.command(name)
        if at_call:
            # Half of them among the last, where results take their places.
            first = max(1, calls - 30) if rng.random() < 0.5 else 1
            done = self.run(command, call=rng.randint(first, calls))
        else:
            done = self.run(command, after_s=rng.uniform(0, 1.05 * seconds))
        assert done.code in (0, -signal.SIGKILL), done.said
        got = self.turn_of(name)
        start = time.monotonic()
        again = self.run(command)
        self.cost[name] = min(seconds, time.monotonic() - start), calls  # others load the machine
        assert again.code == 0, again.said
        after = self.turn_of(name)
        assert got in (before, after), (before, got, after)
        assert got == after or done.code != 0
        assert self.debris() == [], self.debris()
        ended = " after its end" if done.code == 0 else ""
        return ("-" if got is None else "new" if got == after else "old") + ended

    def debris(self) -> list[str]:
        found = [p for p in self.folder.rglob("*") if re.fullmatch(temporary.NAME, p.name)]
        return [str(p) for p in (*found, *self.results.glob("*.calibrating.npz"))]

    def run(self, words: list, *, call: int | None = None, after_s: float | None = None) -> Done:
        """Run the command line in a fork of this process, which has imported what is slow."""
        count = mmap.mmap(-1, 8)
        log = self.folder / "log"
        pid = os.fork()
        if pid == 0:
            _child(words, self.tmp, log, count, call)
        end, ended, status = time.monotonic() + (after_s or 0), 0, 0
        while after_s is not None and time.monotonic() < end and not ended:
            time.sleep(0.002)
            ended, status = os.waitpid(pid, os.WNOHANG)
        if after_s is not None and not ended:
            os.kill(pid, signal.SIGKILL)
        if not ended:
            _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return Done(code, int.from_bytes(count[:], "little"), log.read_text(errors="replace"))


def _child(words: list, tmp: Path, log: Path, count: mmap.mmap, call: int | None) -> None:
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ["TMPDIR"] = str(tmp)
        seen = 0

        def on_event(event: str, given: tuple) -> None:
            nonlocal seen
            if event in CALLS or (event == "open" and given[2] and given[2] & WRITES):
                seen += 1
                count[:] = seen.to_bytes(8, "little")
                if seen == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        from stan_infer.cli.main import main

        sys.argv = ["stan-infer", *map(str, words)]
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.addaudithook(on_event)
        try:
            main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def preload() -> None:
    """Import what commands import, so that a fork of this process starts at once."""
    import matplotlib.figure  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401

    import stan_infer.export.to_onnx  # noqa: F401
    from stan_infer.benchmarking import interleave
    from stan_infer.quantisation import calibrate, sensitivity, verdict  # noqa: F401

    # Speed is measured in one round only: measuring is most of the time that calibrate takes.
    sensitivity.ROUNDS = 1
    once = interleave.Schedule(warmup=0, repeats=1)
    verdict.Schedule = lambda **given: once
    interleave.WARM_MS = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--no-exchange", action="store_true", help="As on systems without it.")
    options = parser.parse_args()
    preload()
    if options.no_exchange:
        atomic._rename_exchange = lambda a, b: False
    commands = options.commands.split(",")
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name), *make_inputs(Path(name)))
        for command, (seconds, calls) in place.cost.items():
            print(f"{command}: {seconds:.1f} s, {calls} calls", flush=True)
        rng = random.Random(options.seed)
        found: collections.Counter = collections.Counter()
        for i in range(options.kills):
            command = commands[i % len(commands)]
            at_call = i // len(commands) % 2 == 0
            how = "call" if at_call else "moment"
            found[command, how, place.kill(command, rng, at_call)] += 1
            print(f"{i + 1}: {command} {how}", flush=True)
    for key, number in sorted(found.items()):
        print(*key, number)


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """A tiny checkpoint and three clips, made in a fork: threads would not survive one."""
    checkpoint, videos = folder / "tiny.safetensors", folder / "videos"
    forked(lambda: _make(checkpoint, videos))
    return checkpoint, videos


def _make(checkpoint: Path, videos: Path) -> None:
    from stan_infer.checkpoints.load import save_model
    from stan_infer.checkpoints.presets import preset
    from stan_infer.network.model import Stan, init_random
    from tests.conftest import write_video

    smaller = {"width": 32, "mlp_width": 64, "layers": 2, "branch_layers": 2, "text_layers": 1}
    config = dataclasses.replace(preset("stan-tiny"), **smaller)
    save_model(init_random(Stan(config), seed=3), checkpoint)
    videos.mkdir()
    for i in range(3):
        write_video(videos / f"clip{i}.mp4", seed=i)


def forked(work: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


if __name__ == "__main__":
    main()
