"""Run every command where only extra `runtime` is installed: what is absent is said, with the line.

Run by the environment under test: `python -P sweep.py CHECKPOINT FOLDER VIDEOS LABELS CSV`. Prints
one line for each command line that ends otherwise than it should.
"""

import os
import sys
import tempfile
from pathlib import Path

from stan_infer.cli.app import app
from stan_infer.cli.main import main
from stan_infer.system.packages import install_command

CHECKPOINT_ENGINES = {"eager": "cpu", "compile": "cpu", "triton": "gpu"}
# Engine of a folder -> the extra that is missing for it.
FOLDER_ENGINES = {"ort": None, "openvino": "openvino", "trt": "gpu", "trt-rtx": "gpu"}

ONCE = ["--repeats", "1", "--warmup", "1", "--min-seconds", "0"]

Row = tuple[list[str], int | str]  # words, then the exit code, or the extra of an exit with 3


def rows(checkpoint: str, folder: str, videos: str, labels: str, csv: str) -> list[Row]:
    found: list[Row] = []
    words = {
        "run": [videos, "--labels", labels],
        "embed": [videos, "-o", "e.npz"],
        "eval": ["--dataset", "recognition", "--annotations", csv, "--videos", videos],
        "watch": [f"{videos}/red_cross_moves_left.mp4", "--labels", labels, "--windows", "0.5"],
    }
    for command, more in words.items():
        found.append(([command, checkpoint, *more], "cpu"))
        found.append(([command, "ViT-B-32-quickgelu:openai", *more], "cpu"))
        for engine, extra in CHECKPOINT_ENGINES.items():
            found.append(([command, checkpoint, *more, "--engine", engine], extra))
            found.append(([command, folder, *more, "--engine", engine], 2))
        for engine, missing in FOLDER_ENGINES.items():
            found.append(([command, folder, *more, "--engine", engine], missing or 0))
            found.append(([command, checkpoint, *more, "--engine", engine], 2))
        found.append(([command, folder, *more, "--device", "cuda"], "gpu"))
    found.append((["run", folder, *words["run"], "--decoder", "decord"], "decord"))
    found.append((["run", folder, *words["run"], "--windows", "0.5:0.25:grid"], 0))
    found.append((["watch", folder, *words["watch"], "--plot", "p.png"], "report"))
    found.append((["embed", folder, videos, "-o", "e.parquet"], "parquet"))
    found.append((["embed", folder, "--text", "a dog", "-o", "e.npy"], 0))
    found.append((["eval", folder, *words["eval"], "-o", "answers"], "report"))
    found += [(["inspect", x], 0) for x in (checkpoint, folder)]
    found.append((["inspect", "ViT-B-32-quickgelu:openai"], "cpu"))
    found.append((["convert", checkpoint, "c.safetensors"], "cpu"))
    out = ["-o", "out"]
    found += [
        (["export", checkpoint, *out], "cpu"),
        (["export", checkpoint, *out, "--graph", "reference"], "cpu"),
        (["export", checkpoint, *out, "--clips", videos], "cpu"),
        (["export", checkpoint, *out, "--format", "tensorrt"], "cpu"),
        (["export", checkpoint, *out, "--format", "tensorrt-rtx"], "cpu"),
        (["export", checkpoint, *out, "--format", "triton-server"], "cpu"),
        (["export", folder, *out, "--format", "triton-server"], 0),
        (["export", folder, *out], 2),
        (["export", folder, "--format", "tensorrt"], "trt"),
        (["export", folder, "--format", "tensorrt-rtx"], "trt-rtx"),
        (["calibrate", checkpoint, "--videos", videos, *out], "cpu"),
        (["calibrate", folder, "--videos", videos, *out], "cpu"),
        (["calibrate", folder, "--videos", videos, *out, "--precision", "fp8"], "cpu"),
        (["verify", checkpoint, folder], "cpu"),
        (["verify", folder, checkpoint], "cpu"),
        (["verify", folder, folder, "--bisect"], 0),
        (["verify", folder, folder, "--engine-b", "openvino"], "openvino"),
        (["bench"], "cpu"),
        (["bench", checkpoint], "cpu"),
        (["bench", folder, "--batch", "1", "--frames", "2", *ONCE], 0),
        (["bench", folder, "--report", "page"], "report"),
    ]
    for engine, extra in CHECKPOINT_ENGINES.items():
        found.append((["bench", "--engine", engine], extra))
        found.append((["bench", checkpoint, "--engine", engine], extra))
    for engine, missing in FOLDER_ENGINES.items():
        if missing:
            found.append((["bench", folder, "--engine", engine], missing))
    return found


def trivial(command: str) -> list[Row]:
    """No argument, help, an unknown option, and a file that does not exist."""
    found: list[Row] = [([command, "--help"], 0), ([command, "--no-such-option"], 2)]
    if command not in ("doctor", "bench"):
        found.append(([command], 2))
        found.append(([command, "missing.pth"], 2))
    if command in ("run", "embed", "eval", "inspect", "bench"):
        found.append(([command, "missing.plan", *{"embed": ["-o", "e.npz"]}.get(command, [])], 2))
    return found


def run(words: list[str], folder: Path) -> tuple[int, str]:
    """Run one command line in a child of its own; returns its exit code and all that it printed.

    A fork has no module loaded but those that the command line always loads.
    """
    log = folder / "log"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            sys.argv = ["stan-infer", *words]
            main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1 if e.code else 0
        except BaseException as e:
            print(f"Traceback: {e!r}")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def fault(words: list[str], wanted: int | str) -> str | None:
    """What is wrong with how a command line ends, or None."""
    with tempfile.TemporaryDirectory() as name:
        code, text = run(words, Path(name))
    if code == 4 and "every row is starved" in text:
        code = 0  # other work had the CPUs while the benchmark ran
    if code != (3 if isinstance(wanted, str) else wanted):
        return f"exit code {code}, not {wanted}: {_last_line(text)}"
    if "Traceback" in text or "internal error" in text:
        return "an internal error"
    if isinstance(wanted, str) and (line := install_command(wanted)) not in text:
        return f"does not name {line}"
    return None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing printed"])[-1]


def library_rows(folder: str, videos: str, library: str) -> list[Row]:
    words = ["search", library, "a dog", "--model"]
    return [
        ([*words, folder], 0),
        ([*words, folder, "--like", videos], 2),
        ([*words, folder, "--html", "page.html"], "report"),
        ([*words, "ViT-B-32-quickgelu:openai"], "cpu"),
        (["serve", library, "--model", folder], "serve"),
        (["library", "inspect", library], 0),
        (["library", "verify", library], 0),
        (["library", "verify", library, folder], 0),
        (["library", "migrate", library, "ViT-B-32-quickgelu:openai"], "cpu"),
    ]


def sweep(places: list[str]) -> int:
    folder, videos = places[1:3]
    with tempfile.TemporaryDirectory() as place:
        library = f"{place}/library"
        code, text = run(["embed", folder, videos, "-o", library], Path(place))
        if code:
            raise SystemExit(f"no library to search: exit code {code}: {_last_line(text)}")
        return _sweep([*rows(*places), *library_rows(folder, videos, library)])


def _sweep(todo: list[Row]) -> int:
    wrong = 0
    commands = [c.callback.__name__ for c in app.registered_commands if c.callback]
    for words, wanted in [*todo, *(row for c in commands for row in trivial(c))]:
        why = fault(words, wanted)
        if why is not None:
            wrong += 1
            print(f"stan-infer {' '.join(words)}: {why}")
    return wrong


if __name__ == "__main__":
    sys.exit(sweep(sys.argv[1:]) > 0)
