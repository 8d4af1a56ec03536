"""Types are checked in threads at once; in a process of its own, which the fault would end."""

import subprocess
import sys

CODE = """
import sys, threading
from typing import TypedDict
from stan_infer.system.json_file import checked

sys.setswitchinterval(1e-6)

def new_kind():
    kind = int
    for level in range(6):
        fields = {"inside": kind} | {f"more{i}": "NotRequired[int]" for i in range(3)}
        kind = TypedDict(f"Kind{level}", fields)
        kind.__module__ = "typing"  # where msgspec looks up the names in annotations
    return kind

value = 1
for _ in range(6):
    value = {"inside": value, "more0": 1}
failed = []
for _ in range(60):
    kind, start = new_kind(), threading.Barrier(4)
    def check():
        start.wait()
        try:
            checked(value, kind, "value")
        except BaseException as e:
            failed.append(e)
    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
assert not failed, failed[0]
"""


def test_a_type_met_by_four_threads_at_once():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
