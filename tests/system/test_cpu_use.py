"""CPU time got, wanted and denied: the system's files as they look on other machines, and here."""

import hashlib
import os
import sys
import threading
import time

import pytest

from stan_infer.system import machine
from stan_infer.system.cpu_use import CpuMeter, MachineMeter, quota_cpus

MOUNT = "31 23 0:28 {root} /sys/fs/cgroup{place} rw,nosuid - {kind} {kind} rw{options}\n"


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_2(quota, *, own="/", top="/", at="", **more):
    mount = MOUNT.format(root=top, place="", kind="cgroup2", options=",nsdelegate")
    return {
        "proc/self/cgroup": f"0::{own}\n",
        "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/vda rw\n" + mount,
        f"sys/fs/cgroup{at}/cpu.max": f"{quota}\n",
        f"sys/fs/cgroup{at}/cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 1500000\n",
        **more,
    }


def version_1(quota, period=100000):
    place, options = "/cpu,cpuacct", ",cpu,cpuacct"
    folder = "sys/fs/cgroup/cpu,cpuacct/docker/12"
    mount = MOUNT.format(root="/", place=place, kind="cgroup", options=options)
    plain = MOUNT.format(root="/", place="/unified", kind="cgroup2", options="")
    return {
        "proc/self/cgroup": "4:memory:/docker/12\n3:cpu,cpuacct:/docker/12\n0::/docker/12\n",
        "proc/self/mountinfo": plain + mount,
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": f"{period}\n",
        f"{folder}/cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 1500000000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        (version_2("150000 100000"), 1.5),
        (version_2("max 100000"), None),
        # the quota of a group above, as of a Kubernetes pod
        (version_2("max 100000", own="/pod/box", at="/pod/box",
                   **{"sys/fs/cgroup/pod/cpu.max": "50000 100000\n"}), 0.5),
        # seen from inside, where the topmost visible group is the container's own
        (version_2("200000 100000", own="/docker/1", top="/docker/1"), 2.0),
        (version_2("200000 100000", own="/docker/12", top="/docker/1"), 2.0),
        ({**version_2("200000 100000"), "proc/self/cgroup": "4:memory:/\n"}, None),
        (version_1(250000), 2.5),
        (version_1(-1), None),
        ({}, None),
        (version_2("nonsense"), None),
        (version_2("100000 0"), None),
        ({"proc/self/cgroup": "nonsense\n", "proc/self/mountinfo": "\n"}, None),
    ],
)  # fmt: skip
def test_a_quota(tmp_path, files, cpus):
    assert quota_cpus(tree(tmp_path, files)) == cpus


@pytest.mark.parametrize("files", [version_2("150000 100000"), version_1(150000)])
def test_time_that_a_quota_took(tmp_path, files):
    meter = CpuMeter(tree(tmp_path, files))
    (stat,) = tmp_path.rglob("cpu.stat")
    text = stat.read_text()
    _, use = meter.around(lambda: stat.write_text(text.replace(" 1500000", " 1750000")))
    assert use.throttled == pytest.approx(0.25)
    assert use.waiting is None  # there are no threads in this tree


def test_time_that_threads_waited(tmp_path):
    """Two threads wait, one ends, one is new: 3 + 2 + 1 seconds."""
    task = "proc/self/task/{}/schedstat"
    first = {task.format(n): f"7 {s * 10**9} 5\n" for n, s in ((1, 10), (2, 20), (3, 40))}
    meter = CpuMeter(tree(tmp_path, first))

    def run():
        (tmp_path / task.format(3)).unlink()
        later = {task.format(n): f"9 {s * 10**9} 8\n" for n, s in ((1, 13), (2, 22), (4, 1))}
        tree(tmp_path, later)
        return "out"

    out, use = meter.around(run)
    assert out == "out" and use.waiting == pytest.approx(6) and use.throttled is None


def test_cpus_that_others_had(tmp_path):
    def stat(busy, stolen):
        line = f"{busy} 0 10 1000 5 0 0 {stolen} 0 0\n"
        return {"proc/stat": f"cpu {line}cpu0 {line}cpu1 {line}cpu2 9999 0 0 0 0 0 0 9999 0 0\n"}

    tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    meter = MachineMeter([0, 1], tree(tmp_path, stat(100, 0)))
    time.sleep(0.05)
    tree(tmp_path, stat(100 + 100 * tick, 100 * tick))  # far more than passed: the whole
    seen = meter.read()
    assert seen.others == seen.stolen == 1.0
    tree(tmp_path, stat(100, 0))
    seen = meter.read()
    assert seen.others == seen.stolen == 0.0


def test_a_sandbox_that_writes_zeros_tells_nothing(tmp_path):
    meter = MachineMeter([0], tree(tmp_path, {"proc/stat": "cpu0 0 0 0 0 0 0 0 0 0 0\n"}))
    end = time.process_time() + 0.11
    while time.process_time() < end:
        pass
    assert meter.read().others is meter.read().stolen is None


@pytest.mark.parametrize("cpus", [None, [], [0, 7]])
def test_cpus_that_the_system_does_not_tell(tmp_path, cpus):
    tree(tmp_path, {"proc/stat": "cpu 1 2 3\ncpu0 1 2 3 4 5 6 7 8 9 10\n"})
    seen = MachineMeter(cpus, tmp_path).read()
    assert seen.others is None and seen.stolen is None


def test_threads_are_no_more_than_a_quota(monkeypatch):
    monkeypatch.setattr(machine, "cpus_of_this_process", lambda: [0, 1, 2, 3])
    for quota, threads in ((None, 4), (2.5, 2), (0.5, 1), (64.0, 4)):
        monkeypatch.setattr(machine, "quota_cpus", lambda quota=quota: quota)
        assert machine.usable_cpus() == threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
@pytest.mark.skipif(
    not os.path.exists("/proc/self/schedstat"), reason="this kernel has no CONFIG_SCHED_INFO"
)
def test_two_threads_on_one_cpu_wait_for_each_other():
    """Whatever else runs: each of them gets at most half of the CPU, and wants it all the time."""
    allowed = os.sched_getaffinity(0)
    data, done, end = bytes(100_000_000), threading.Barrier(3), threading.Event()

    def compute():
        hashlib.sha256(data)
        done.wait()
        end.wait()

    def work():
        for _ in range(2):
            threading.Thread(target=compute, daemon=True).start()
        done.wait()

    os.sched_setaffinity(0, {min(allowed)})
    try:
        _, use = CpuMeter().around(work)
    finally:
        os.sched_setaffinity(0, allowed)
        end.set()
    assert use.waiting > 0.3 * use.used > 0
