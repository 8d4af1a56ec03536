"""Child processes: messages, deadlines, and every way to end."""

import signal
import sys
import threading
import time

import pytest

from stan_infer.system.child import Child, how_it_ended, receive, receive_bytes, run_child, send


def python(code):
    return (sys.executable, "-P", "-c", code)


ECHO = python(
    "import sys\n"
    "for line in sys.stdin.buffer: sys.stdout.buffer.write(line + b'abc'); sys.stdout.flush()"
)


def test_messages_and_bytes_after_them():
    child = Child(ECHO)
    for value in ("a\n", "\udcff", list(range(9))):
        send(child.input, {"value": value})
        assert receive(child.output) == {"value": value}
        assert receive_bytes(child.output, 3) == b"abc"
    assert child.runs
    child.input.close()
    with pytest.raises(EOFError):
        receive(child.output)
    assert child.wait() == 0 and not child.runs
    assert child.input.closed and child.output.closed


def test_a_deadline_kills_even_what_is_stopped():
    child = Child(python("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"))
    with child.deadline(0.3) as expired, pytest.raises(EOFError):
        receive(child.output)
    assert expired.is_set() and child.end() == -signal.SIGKILL
    child = Child(ECHO)
    with child.deadline(60) as expired:
        pass
    assert child.runs and not expired.is_set()
    child.end()


def test_one_thread_watches_over_all_deadlines():
    """Longer, shorter, and none between them; it ends with the child."""
    before = set(threading.enumerate())
    child = Child(ECHO)
    for seconds in (60, 30, 90):
        for _ in range(3):
            with child.deadline(seconds) as expired:
                send(child.input, {})
                assert receive(child.output) == {} and receive_bytes(child.output, 3) == b"abc"
            assert not expired.is_set()
        (watchdog,) = set(threading.enumerate()) - before
    with child.deadline(0.2) as expired, pytest.raises(EOFError):
        receive(child.output)  # the thread slept until the end of the 90 seconds
    assert expired.is_set() and child.end() == -signal.SIGKILL
    assert not watchdog.is_alive()


def test_a_deadline_that_is_over_kills_nothing():
    child = Child(ECHO)
    with child.deadline(0.2):
        pass
    with child.deadline(0.4) as expired:
        time.sleep(0.3)  # the first would have killed it
    time.sleep(0.3)
    assert child.runs and not expired.is_set()
    child.end()


def test_what_else_a_child_prints_is_passed_over():
    seen = []
    code = (
        "import sys; sys.stdin.read()\n"
        "print('noise'); print(7); print('{\"a\": 1}'); print('{\"b', end='')\n"
        "print('!' * 9, file=sys.stderr); sys.exit(5)"
    )
    ended = run_child(python(code), {"x": 1}, seen.append)
    assert seen == [{"a": 1}]
    assert ended.code == 5 and ended.errors.strip() == "!" * 9
    assert how_it_ended(5) == "exit code 5" and how_it_ended(-9) == "signal 9"


def test_a_child_that_does_not_read_its_request():
    ended = run_child(python("raise SystemExit(3)"), {"x": "y" * 2**20}, print)
    assert ended.code == 3


@pytest.mark.parametrize("grace_s", [0.0, 5.0])
def test_an_interrupt_ends_the_child(tmp_path, grace_s):
    told = tmp_path / "told"
    code = (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGINT, lambda *a: (open({str(told)!r}, 'w').close(), sys.exit()))\n"
        "print('{}', flush=True); time.sleep(60)"
    )

    def interrupt(message):
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_child(python(code), {}, interrupt, grace_s=grace_s)
    assert time.monotonic() - started < 30
    assert told.exists() == bool(grace_s)
