"""python -m tests.video.zoo_table [TEXT]: what the readers give for each file of the zoo.

The reference is the ffmpeg command line. PyAV, as the package uses it: frames and the largest
difference of a value, of 255. decord alone, without the package: all frames asked for at once, and
eight of them, as the authors' pipeline takes them. TEXT: only files whose names contain it. decord
runs in a process of its own for each file, because it may crash or hang.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError
from stan_infer.video.clip import sample_indices
from stan_infer.video.pyav_reader import read_pyav
from tests.video.zoo import RECIPES, Frames, Zoo, difference, right_frames

SECONDS = 20
# Pictures are compared by their mean, as decord converts to RGB in another way; a wrong frame has
# squares of the other colour.
SAME = 4.0
_CHILD = """
import sys
import decord, numpy as np
reader = decord.VideoReader(sys.argv[1], ctx=decord.cpu(0), num_threads=1)
numbers = [int(n) for n in sys.argv[3].split(",")] if len(sys.argv) > 3 else range(len(reader))
np.savez(sys.argv[2], total=len(reader), images=reader.get_batch(list(numbers)).asnumpy())
"""


def decord_frames(
    path: Path, numbers: list[int] | None = None
) -> tuple[int, NDArray[np.uint8]] | str:
    """Count and frames [n, H, W, 3] that decord gives, or why it gives none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        asked = [",".join(map(str, numbers))] if numbers is not None else []
        command = [sys.executable, "-c", _CHILD, path, out, *asked]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return "hangs"
        if done.returncode < 0:
            return f"crashes (signal {-done.returncode})"
        if done.returncode:
            return "error"
        with np.load(out) as z:
            return int(z["total"]), z["images"]


def verdict(path: Path, right: Frames) -> tuple[str, str]:
    """Two cells: all frames, and eight that are sampled."""
    whole = decord_frames(path)
    if isinstance(whole, str):
        return whole, ""
    total, images = whole
    every = compare(images, right[: len(images)])
    if total != len(right):
        every = f"{total} frames instead of {len(right)}; {every}"
    numbers = sample_indices(min(total, len(right)), 8).tolist()
    some = decord_frames(path, numbers)
    if isinstance(some, str):
        return every, some
    return every, compare(some[1], [right[i] for i in numbers])


def compare(found: NDArray[np.uint8], right: Frames) -> str:
    """In words: how many frames are others than they should be."""
    if not right or found.shape[1:] != right[0].shape:
        return f"size {found.shape[1:3]} instead of {right[0].shape[:2] if right else 'none'}"
    apart = [np.abs(a.astype(int) - b).mean() for a, b in zip(found, right, strict=False)]
    wrong = sum(d > SAME for d in apart)
    return f"{wrong} of {len(apart)} wrong (mean {max(apart):.0f})" if wrong else "right"


def ours(path: Path, right: Frames) -> str:
    """In words: what the package reads."""
    try:
        found = read_pyav(path, np.arange, lambda image: image)
    except InputError as e:
        return f"error: {str(e).partition(': ')[2][:60]}"
    if found.total_frames != len(right):
        return f"{found.total_frames} frames instead of {len(right)}"
    if found.size != right[0].shape[:2]:
        return "another size"
    return str(difference([found.images[i] for i in range(len(right))], right)[0])


def main() -> None:
    """Print the table and a summary."""
    counts: Counter[str] = Counter()
    names = [name for name in RECIPES if "".join(sys.argv[1:2]) in name]
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(Path(folder))
        print("| file | frames | PyAV: largest difference | decord: all | decord: eight |")
        print("|---|---|---|---|---|")
        for name in names:
            right = right_frames(zoo, name)
            every, some = verdict(zoo.file(name), right) if right else ("not compared", "")
            counts[f"decord {'right' if every == some == 'right' else 'not right'}"] += 1
            counts[f"PyAV {(us := ours(zoo.file(name), right))}"] += 1
            print(f"| {name} | {len(right)} | {us} | {every} | {some} |", flush=True)
    print(f"\n{len(names)} files: {dict(counts)}")


if __name__ == "__main__":
    main()
