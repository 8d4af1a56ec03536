"""200 clips with 10 broken ones among them: 190 vectors, 10 named errors, no hang, memory flat."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from tests.conftest import python
from tests.video import broken_videos as make

# Of the command and of its decoding worker, in MiB: what may differ between 20 and 200 clips.
# Allocators and page caches of libraries settle within it; one clip kept per video would not.
FLAT = 24


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    good = make.make_clip(folder / "good000.mp4", frames=24, size=(96, 96))
    for i in range(1, 190):
        (folder / f"good{i:03}.mp4").write_bytes(good.read_bytes())
    broken = {
        "cut-index": lambda p: p.write_bytes(good.read_bytes()[: good.stat().st_size // 2]),
        "cut-data": lambda p: make.cut_off(faststart(folder, good), p),
        "empty": lambda p: p.write_bytes(b""),
        "audio": make.make_audio,
        "text": lambda p: p.write_text("not a video at all\n" * 50),
        "picture": lambda p: make.make_png(p.with_suffix(".png")).rename(p),
        "lying": lambda p: make.lie_count(good, p, 1_000_000),
        "pipe": os.mkfifo,
        # Packet 1 is a picture that others are built on; damage that no chosen frame needs is none.
        "damaged": lambda p: make.damage(good, p, 1),
        "dangling": lambda p: p.symlink_to(folder / "nowhere.mp4"),
    }
    for i, (name, build) in enumerate(broken.items()):
        build(folder / f"good{19 * i:03}-{name}.mp4")  # strewn among the good ones
    return folder, sorted(broken)


def faststart(folder, good):
    """A copy with its index in front, so that a cut loses pictures only."""
    return make.remux(good, folder.parent / "front.mp4", muxer={"movflags": "faststart"})


def embed(checkpoint, paths, out):
    code = (
        "import json, resource, sys\n"
        "from stan_infer.cli.main import main\n"
        "sys.argv = ['stan-infer', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as e:\n    code = e.code\nelse:\n    code = 0\n"
        "peaks = [resource.getrusage(w).ru_maxrss / 1024 for w in\n"
        "         (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
        "print(json.dumps({'code': code, 'peaks': peaks}))\n"
    )
    done = python("-c", code, "embed", checkpoint, *paths, "-o", out, "--json")
    assert "Traceback" not in done.stderr, done.stderr
    return *map(json.loads, done.stdout.splitlines()), done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_200_clips_with_10_broken_ones(checkpoint, mixed, tmp_path):
    folder, broken = mixed
    record, end, err = embed(checkpoint, [folder], tmp_path / "all.npz")
    assert end["code"] == 2
    assert (record["videos"], record["failed"]) == (190, 10)
    data = np.load(tmp_path / "all.npz")
    assert data["embeddings"].shape == (190, 64)
    assert np.abs(data["embeddings"] - data["embeddings"][0]).max() < 1e-6  # all the same clip
    named = sorted(f["video"].rsplit("-", 1)[-1].removesuffix(".mp4") for f in record["failures"])
    expected = sorted(name.rsplit("-", 1)[-1] for name in broken)
    assert named == expected
    for failure in record["failures"]:
        assert failure["video"].rsplit("/", 1)[-1] in failure["error"]
        assert failure["error"] in err
    few = sorted(folder.glob("good???.mp4"))[:20]
    _, small, _ = embed(checkpoint, few, tmp_path / "few.npz")
    for many_mib, few_mib in zip(end["peaks"], small["peaks"], strict=True):
        assert many_mib - few_mib < FLAT
