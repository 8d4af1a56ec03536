"""A library that a Ray cluster makes is that of one machine, whatever dies meanwhile."""

import contextlib
import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stan_infer as si
from stan_infer.errors import CheckError, InputError, MissingError
from stan_infer.library.address import Address, fetched, given, list_address, named
from stan_infer.library.embed_library import embed_library
from stan_infer.library.files import hash_file
from stan_infer.library.ray import embed_with_ray, in_order
from stan_infer.library.ray_actors import (
    EmbedVideos,
    Found,
    ReadVideos,
    Work,
    group_rows,
    look_at_stack,
)
from stan_infer.library.readings import EmbedOptions
from stan_infer.library.row_reader import RowReader
from stan_infer.library.verify_library import verify_library
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows
from tests.conftest import ROOT, wait_until
from tests.exported import exported
from tests.library.test_stops import content
from tests.video.broken_videos import make_clip

try:
    import ray
except ImportError:
    if os.environ.get("STAN_INFER_REQUIRE_RAY") == "1":
        raise
    ray = None
needs_ray = pytest.mark.skipif(ray is None, reason="the extra ray is not installed")
CLIPS = 24
ON_GRID = Windows(seconds=1.2, stride=0.4, grid=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """24 short videos, two copies, and three files that are none."""
    folder = tmp_path_factory.mktemp("ray") / "videos"
    folder.mkdir()
    for i in range(CLIPS):
        make_clip(folder / f"{i:02}.mp4", frames=8 + 10 * i, size=(48, 64))
    shutil.copy(folder / "03.mp4", folder / "03-copy.mp4")
    shutil.copy(folder / "20.mp4", folder / "00-copy.mp4")
    (folder / "05-cut.mp4").write_bytes((folder / "05.mp4").read_bytes()[:700])
    (folder / "07-text.mp4").write_text("no video")
    (folder / "09-empty.mp4").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two machines of three CPUs, as processes of this one, beside one that computes nothing."""
    from ray.cluster_utils import Cluster

    # A short path: the names of sockets have a limit.
    place = Path(os.path.realpath("/tmp")) / f"stan-infer-ray-{os.getpid()}"
    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(place / "ray")}
    with pytest.MonkeyPatch.context() as patch:
        # Ray notes the cluster's address below this, not below temp_dir, in a folder that it does
        # not make; without it, for whoever uses Ray on this machine.
        patch.setenv("RAY_TMPDIR", str(place))
        made = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 2**27})
        made.workers = [add_machine(made, i) for i in range(2)]
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()
    shutil.rmtree(place, ignore_errors=True)


def add_machine(cluster, number):
    """A machine with an address of its own: a program joins any that has its address, and ends with
    it.
    """
    address = f"127.0.0.{2 + number}"
    return cluster.add_node(num_cpus=3, object_store_memory=2**27, node_ip_address=address)


@pytest.fixture(scope="module")
def local(videos, folder):
    """What one machine makes, with the threads that an actor has."""
    out = videos.parent / "local"
    done = embed_library(folder, [videos], out, threads=1, workers=1)
    return out, done


def same(one, two):
    """Whether two libraries have the same rows, vectors and passport, bit for bit."""
    assert content(one) == content(two)
    assert (one / "library.json").read_bytes() == (two / "library.json").read_bytes()


def killing(kill, at):
    """A progress that calls `kill` once when so many videos are in the library."""
    done, killed = 0, []

    @contextlib.contextmanager
    def progress(title, total):
        def step(amount=1):
            nonlocal done
            done += amount
            if done >= at and not killed:
                assert done < total
                killed.append(kill())

        yield step

    return progress, killed


def actor_processes(name):
    """The processes of this test's actors of a class."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (place / "cmdline").read_bytes()
            if command.startswith(b"ray::") and name.encode() in command:
                found += [int(place.name)] if os.getpid() in above(int(place.name)) else []
    return found


def above(pid):
    """The processes that started this one."""
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


@needs_ray
def test_no_cluster_answers(tmp_path, videos, folder):
    with pytest.raises(InputError, match="no Ray cluster answers at 127.0.0.1:1"):
        embed_with_ray(folder, [videos], tmp_path / "library", cluster="127.0.0.1:1")
    assert not (tmp_path / "library").exists() and not ray.is_initialized()


@needs_ray
@pytest.mark.parametrize("actor", ["ReadVideos", "EmbedVideos"])
def test_an_actor_is_killed(tmp_path, videos, folder, local, cluster, actor):
    def kill():
        pid = actor_processes(actor)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    progress, killed = killing(kill, 3)
    out = tmp_path / "library"
    done = embed_with_ray(folder, [videos], out, decoders=2, progress=progress)
    assert killed
    own = {"out": 0, "session": 0, "workers": 0}  # a cluster has no workers, but actors
    assert done.to_dict() | own == local[1].to_dict() | own
    same(out, local[0])
    assert embed_with_ray(folder, [videos], out).unchanged == done.videos


@needs_ray
def test_a_machine_is_killed(tmp_path, videos, folder, local, cluster):
    """The one with the model: what lay in its memory is computed again elsewhere."""

    def kill():
        (pid,) = actor_processes("EmbedVideos")
        node = next(n for n in cluster.workers if raylet(n) in above(pid))
        cluster.workers.remove(node)
        cluster.remove_node(node, allow_graceful=False)
        return node

    progress, killed = killing(kill, 3)
    embed_with_ray(folder, [videos], tmp_path / "library", decoders=2, progress=progress)
    cluster.workers.append(add_machine(cluster, 2))
    assert killed
    same(tmp_path / "library", local[0])


def raylet(node):
    return node.all_processes["raylet"][0].process.pid


PROGRAM = """
import sys
from stan_infer.library import embed_library
from stan_infer.library.ray import embed_with_ray
embed_library.COMMIT_ROWS = 1
embed_with_ray(sys.argv[1], [sys.argv[2]], sys.argv[3], cluster=sys.argv[4], decoders=2)
"""


@needs_ray
def test_the_program_is_killed(tmp_path, videos, folder, local, cluster):
    """The next run goes on after what was committed."""
    out = tmp_path / "library"
    command = [sys.executable, "-c", PROGRAM, folder, videos, out, cluster.address]
    with subprocess.Popen(command, cwd=ROOT) as run:
        wait_until(lambda: out.exists() and committed_rows(out) >= 3, run)
        run.kill()
    assert committed_rows(out) < local[1].embedded
    done = embed_with_ray(folder, [videos], out, decoders=2)
    assert 0 < done.embedded < local[1].embedded
    same(out, local[0])


def committed_rows(library):
    with contextlib.suppress(InputError, CheckError):  # it is just being made
        return len(si.open_library(library).ids)
    return 0


@needs_ray
@pytest.mark.parametrize("options", [{"windows": Windows(seconds=0.5), "batch": 3}, {"batch": 4}])
def test_calls_of_the_network_are_those_of_one_machine(tmp_path, videos, folder, cluster, options):
    """Windows of a video are embedded together; without them videos, of which none may fail."""
    whole = sorted(videos.glob("1?.mp4"))
    embed_library(folder, whole, tmp_path / "local", threads=1, workers=1, **options)
    embed_with_ray(folder, whole, tmp_path / "library", decoders=2, **options)
    same(tmp_path / "library", tmp_path / "local")


@needs_ray
def test_windows_on_a_grid_are_those_of_one_machine(tmp_path, videos, tiny_model, cluster):
    """From disks and from an object store; of bad files the same reasons."""
    folder, windows = exported(tiny_model, split=True), {"windows": ON_GRID}
    right = embed_library(folder, [videos], tmp_path / "local", threads=1, workers=1, **windows)
    one = si.open_library(tmp_path / "local")
    assert len(one.ids) > 2 * right.embedded
    for place in (str(videos), videos.as_uri()):
        out = tmp_path / f"library{len(place)}"
        done = embed_with_ray(folder, [place], out, decoders=2, **windows)
        two = si.open_library(out)
        assert (done.rows, done.embedded, done.copies) == (right.rows, right.embedded, right.copies)
        assert [[Path(p).name for p in row] for row in two.videos] == [
            [Path(p).name for p in row] for row in one.videos
        ]
        for name in ("start", "end"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        np.testing.assert_allclose(one.vectors[one.ids], two.vectors[two.ids], atol=1e-6)
        assert {k: v.replace(place, str(videos)) for k, v in two.failed.items()} == {
            k.replace(str(videos), place): v for k, v in one.failed.items()
        }
    assert two.passport["windows"]["grid"] and verify_library(out).count == 0


@needs_ray
def test_an_object_store(tmp_path, videos, folder, local, cluster):
    place = tmp_path / "a place"
    shutil.copytree(videos, place)
    (place / ".hidden.mp4").write_text("no")
    root = place.as_uri()  # as of an object store, with %20
    out = tmp_path / "library"
    done = embed_with_ray(folder, [root], out)
    assert (done.embedded, done.copies) == (local[1].embedded, local[1].copies)
    library, right = si.open_library(out), si.open_library(local[0])
    assert np.array_equal(library.vectors[library.ids], right.vectors[right.ids])
    assert [[name.rpartition("/")[2] for name in row] for row in library.videos] == [
        [Path(name).name for name in row] for row in right.videos
    ]
    assert library.videos[2] == (f"{root}/01.mp4",)
    assert {k.rpartition("/")[2] for k in library.failed} == {
        "05-cut.mp4", "07-text.mp4", "09-empty.mp4"
    }  # fmt: skip
    assert all(error.startswith(root) for error in library.failed.values())
    assert verify_library(out).count == 0
    (place / "01.mp4").rename(place / "renamed.mp4")
    again = embed_with_ray(folder, [root], out, decoders=1)
    assert (again.renamed, again.gone, again.unchanged) == (1, 1, done.videos - 1)
    with pytest.raises(InputError, match="nothing is fetched"), _reader(out) as reader:
        reader.read(Path(f"{root}/renamed.mp4"), None, None)


def _reader(library):
    return RowReader(library, ClipSpec(), 60)


@needs_ray
def test_a_cluster_that_is_too_small(tmp_path, videos, folder, cluster):
    with pytest.raises(InputError, match="has 6 CPUs and 0 GPUs; 7 decoders and 2 models need 9"):
        embed_with_ray(folder, [videos], tmp_path / "library", decoders=7, models=2)
    assert not (tmp_path / "library").exists()


@needs_ray
def test_a_program_that_is_connected(tmp_path, videos, folder, cluster):
    with pytest.raises(InputError, match="is connected to a cluster already"):
        embed_with_ray(folder, [videos], tmp_path / "library", cluster=cluster.address)


def test_without_ray(tmp_path, videos, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingError, match="embedding with a cluster needs ray"):
        embed_with_ray(folder, [videos], tmp_path / "library")


def test_options(tmp_path, videos, folder):
    for options, message in (
        ({"workers": 2}, "give decoders"),
        ({"models": 0}, "models is 0"),
        ({"model_gpus": -1}, "model_gpus is -1"),
    ):
        with pytest.raises(InputError, match=message):
            embed_with_ray(folder, [videos], tmp_path / "library", **options)
    with pytest.raises(InputError, match="would be kept in the library"):
        embed_with_ray(folder, ["s3://key:secret@bucket/a.mp4"], tmp_path / "library")


# What the actors do, without Ray.


@pytest.fixture(scope="module")
def work(folder):
    how = EmbedOptions(timeout_s=60)
    return Work(str(folder), {"threads": 1}, None, "auto", None, how)


@pytest.fixture(scope="module")
def stack(work):
    pytest.importorskip("pyarrow")
    return look_at_stack(work)


def through(work, stack, paths, known=()):
    """The rows of both kinds of actors, one group for each path."""
    import pyarrow

    reader = ReadVideos(work, stack, np.array(sorted(known), "S32"))
    model = EmbedVideos(work, stack)
    table = pyarrow.Table.from_pylist(group_rows([p] for p in paths))
    return [row for read in reader(table) for out in model(read) for row in out.to_pylist()]


def test_what_is_known_is_not_decoded(work, stack, videos):
    paths = [videos / "00.mp4", videos / "01.mp4"]
    sha256 = hash_file(paths[0]).sha256
    first, second = in_order(through(work, stack, paths, [sha256]), 2)
    assert (len(first.readings), len(second.readings)) == (0, 1)
    assert first.videos[0].before.sha256 == sha256
    assert second.readings[0].features.shape == (len(stack.canaries[0]["vector"]),)
    assert second.readings[0].clip.pixels.size == 0


def test_a_machine_with_another_stack_is_refused(work, stack, videos):
    other = [c | {"pixels": "0" * 64} for c in stack.canaries]
    with pytest.raises(CheckError, match="read to other pixels than where the model is"):
        list(in_order(through(work, dataclasses.replace(stack, canaries=other), [videos]), 1))
    turned = [c | {"vector": [-x for x in c["vector"]]} for c in stack.canaries]
    changed = dataclasses.replace(stack, canaries=turned)
    with pytest.raises(CheckError, match="gives other vectors than on the first machine"):
        list(in_order(through(work, changed, [videos / "00.mp4"]), 1))
    older = dataclasses.replace(work, version="0.0")
    with pytest.raises(CheckError, match="0.0 where the run was started"):
        list(in_order(through(older, stack, [videos / "00.mp4"]), 1))
    facts = dataclasses.replace(stack, facts=stack.facts | {"reading.numpy": "1.0"})
    (found,) = in_order(through(work, facts, [videos / "00.mp4"]), 1)
    assert len(found.readings) == 1 and "reading.numpy '1.0' -> " in found.notes[0]


def test_a_model_that_is_not_there_is_an_error(work, videos):
    gone = dataclasses.replace(work, source=str(videos / "none.pth"))
    assert "none.pth" in str(look_at_stack(gone))


def test_groups_come_in_order_once_each():
    def row(group, call, last, *readings):
        return {
            "group": group, "call": call, "last": last,
            "data": pickle.dumps(Found([*readings], [group] if last else [])),
        }  # fmt: skip

    rows = [
        row(1, 0, True, "c"), row(0, 1, True, "b"), row(1, 0, True, "c"), row(0, 0, False, "a"),
        row(0, 0, False, "a"), row(3, 0, True), row(2, 0, True, "d"), row(0, 1, True, "b"),
    ]  # fmt: skip
    found = [(f.readings, f.videos) for f in in_order(rows, 4)]
    assert found == [(["a", "b"], [0]), (["c"], [1]), (["d"], [2]), ([], [3])]
    with pytest.raises(RuntimeError, match="1 of 4 groups"):
        list(in_order([r for r in rows if r["group"] != 1], 4))


def test_addresses(tmp_path):
    pytest.importorskip("pyarrow")
    address = given("s3://bucket//odd//a%20b.mp4")
    assert isinstance(address, Address) and str(address) == "s3://bucket//odd//a%20b.mp4"
    assert os.fsencode(address) == b"s3://bucket//odd//a%20b.mp4"
    assert pickle.loads(pickle.dumps(address)) == address == named(str(address))
    assert address != named("s3://bucket/odd/a%20b.mp4") and address.suffix == ".mp4"
    assert given("a.mp4") == Path.cwd() / "a.mp4" and not isinstance(given("/a://b"), Address)
    (tmp_path / "a b.mp4").write_bytes(b"123")
    found, is_folder = list_address(Address(tmp_path.as_uri()))
    (one,) = found
    assert is_folder and found[one][0] == 3 and list_address(one) == (found, False)
    with fetched(one) as (copy, seen):
        assert copy.read_bytes() == b"123" and seen == found[one] and copy.suffix == ".mp4"
    assert not copy.exists()
    for wrong in ("file:///nowhere/at/all", "nothing://x/y"):
        with pytest.raises(InputError, match=f"{wrong}"):
            list_address(Address(wrong))
