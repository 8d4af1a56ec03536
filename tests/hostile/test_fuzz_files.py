"""A few hundred damaged files of every kind; CONTRIBUTING.md names the command for more."""

from tests.hostile.fuzz_files import World, fuzz


def test_only_our_own_errors_come_out(tmp_path):
    found = fuzz(World(tmp_path), range(600), seed=1)
    assert not found.failed, found.reasons
    for kind in ("manifest", "sidecar", "calibration", "annotation", "cache"):
        assert any(name.startswith(kind) for name in found.split), found.split
