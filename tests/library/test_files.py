"""Files that are hashed ahead, several in one task."""

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from threading import Event

from stan_infer.library import files


def test_all_are_hashed_in_order_some_ahead(tmp_path):
    paths = [tmp_path / f"{i:02}" for i in range(41)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d" % i)
    paths[7].unlink()
    taken, submitted = [], []

    def asked():
        for path in paths:
            taken.append(path)
            yield path

    with ThreadPoolExecutor(2) as threads:
        real = threads.submit
        threads.submit = lambda work, group: submitted.append(len(group)) or real(work, group)
        found = []
        for path, file in files.hashed(asked(), threads):
            assert len(taken) - len(found) <= files._AHEAD + files._GROUP
            found.append((path, file))
    assert [path for path, _ in found] == paths
    for i, (_, file) in enumerate(found):
        right = None if i == 7 else sha256(b"%d" % i).digest()
        assert file.sha256 == right and (file.error is None) == (i != 7)
    assert submitted == [1, 2, 4, 8, 8, 8, 8, 2]


def test_what_nobody_asks_for_any_more_is_not_hashed(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"a")
    seen, closed, real = [], Event(), files.hash_file

    def slow(path):
        assert not seen or closed.wait(60)
        seen.append(path)
        return real(path)

    monkeypatch.setattr(files, "hash_file", slow)
    with ThreadPoolExecutor(1) as threads:
        rows = files.hashed([tmp_path / "a"] * 100, threads)
        next(rows)
        rows.close()
        closed.set()
    assert len(seen) <= 1 + 2  # the first task, and the one that had begun
