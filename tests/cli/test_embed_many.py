"""200 clips with 10 broken ones among them: 190 vectors, 10 named errors, memory flat."""

import json

import numpy as np
import pytest

from tests.conftest import python
from tests.video import broken_videos as make

# Of the command and of its decoding worker, in MiB: what may differ between 20 and 200 clips.
# Allocators and page caches of libraries settle within it; one clip kept per video would not.
FLAT = 24


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """200 clips, ten of them cut off (tests/cli/test_eval.py has what else may be wrong)."""
    folder = tmp_path_factory.mktemp("mixed")
    good = make.make_clip(folder.parent / "good.mp4", frames=24, size=(96, 96)).read_bytes()
    for i in range(200):
        name, end = ("cut", len(good) // 2) if i % 20 == 7 else ("good", len(good))
        (folder / f"{i:03}-{name}.mp4").write_bytes(good[:end])
    return folder


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


def test_200_clips_with_10_broken_ones(checkpoint, mixed, tmp_path):
    record, end, err = embed(checkpoint, [mixed], tmp_path / "all.npz")
    assert end["code"] == 2
    assert (record["videos"], record["failed"]) == (190, 10)
    data = np.load(tmp_path / "all.npz")
    assert data["embeddings"].shape == (190, 64)
    assert np.abs(data["embeddings"] - data["embeddings"][0]).max() < 1e-6  # all the same clip
    assert all(f["video"].endswith("-cut.mp4") for f in record["failures"])
    for failure in record["failures"]:
        assert failure["video"].rsplit("/", 1)[-1] in failure["error"]
        assert failure["error"] in err
    few = sorted(mixed.glob("*-good.mp4"))[:20]
    _, small, _ = embed(checkpoint, few, tmp_path / "few.npz")
    for many_mib, few_mib in zip(end["peaks"], small["peaks"], strict=True):
        assert many_mib - few_mib < FLAT
