"""A library that a Ray cluster makes is that of one machine, whatever dies meanwhile."""

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from stan_infer.library.embed_library import embed_library
from stan_infer.library.ray import embed_with_ray
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
    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(place)}
    made = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 2**27})
    made.workers = [made.add_node(num_cpus=3, object_store_memory=2**27) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    shutil.rmtree(place, ignore_errors=True)


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
    assert done.to_dict() | {"out": 0, "session": 0} == local[1].to_dict() | {
        "out": 0, "session": 0
    }  # fmt: skip
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
        return raylet

    progress, killed = killing(kill, 3)
    embed_with_ray(folder, [videos], tmp_path / "library", decoders=2, progress=progress)
    cluster.workers.append(cluster.add_node(num_cpus=3, object_store_memory=2**27))
    assert killed
    same(tmp_path / "library", local[0])


def raylet(node):
    return node.all_processes["raylet"][0].process.pid
