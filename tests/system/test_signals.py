"""Ctrl-C and SIGTERM end the command line wherever they find it."""

import signal
import subprocess
import sys

import pytest

MAIN = (
    "import sys, threading, time, types\n"
    "from stan_infer.cli import main as cli\n"
    "def ready(): print('ready', flush=True)\n"
)
WAIT = "while True: time.sleep(0.01)"
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def ended(code, number, cwd):
    """Run the command line with `app` in place of its commands; signal it when it is ready."""
    instead = "sys.modules['stan_infer.cli.app'] = types.SimpleNamespace(app=app)"
    command = [sys.executable, "-c", f"{MAIN}{code}\n{instead}\ncli.main()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd) as p:
        try:
            assert p.stdout.readline() == b"ready\n", p.stderr.read()
            p.send_signal(number)
            _, err = p.communicate(timeout=60)
        finally:
            p.kill()
    return p.returncode, err.decode()


def last_line(number):
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return f"{how}: nothing was written\n"


@pytest.mark.parametrize("number", NUMBERS)
def test_while_an_optional_package_loads(number, tmp_path):
    """An exception while a package loads means that it is broken, unless a signal raised it."""
    (tmp_path / "slow_package.py").write_text(f"print('ready', flush=True)\nimport time\n{WAIT}")
    code = (
        "from stan_infer.errors import MissingError\n"
        "from stan_infer.system.packages import require\n"
        "sys.path.insert(0, '')\n"
        "def app():\n"
        "    try: require('slow_package', 'a test', 'cpu')\n"
        "    except MissingError: pass\n"
        f"    {WAIT}\n"
    )
    assert ended(code, number, tmp_path) == (128 + number, last_line(number))


@pytest.mark.parametrize("number", NUMBERS)
def test_in_a_destructor_whose_exceptions_python_drops(number, tmp_path):
    code = (
        "class Slow:\n"
        "    def __del__(self):\n"
        "        ready()\n"
        "        time.sleep(2)\n"
        f"def app():\n    Slow()\n    {WAIT}\n"
    )
    code, err = ended(code, number, tmp_path)
    assert code == 128 + number
    assert err.count("Exception ignored") == 1  # Python's own word on the one that it dropped
    assert err.endswith(last_line(number))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("error", ["ValueError('no shape')", "MissingError('does not load')"])
def test_where_a_library_makes_an_error_of_it(number, error, tmp_path):
    """As torch does where it asks an object for its length and that was interrupted."""
    code = (
        "from stan_infer.errors import MissingError\n"
        "def app():\n"
        "    try:\n"
        "        ready()\n"
        f"        {WAIT}\n"
        "    except BaseException:\n"
        f"        raise {error} from None\n"
    )
    assert ended(code, number, tmp_path) == (128 + number, last_line(number))


@pytest.mark.parametrize("number", NUMBERS)
def test_what_cleans_up_is_not_disturbed(number, tmp_path):
    code = (
        "def app():\n"
        "    try:\n"
        "        ready()\n"
        f"        {WAIT}\n"
        "    finally:\n"
        "        for i in range(3):\n"
        "            try: open('absent')\n"
        "            except OSError: time.sleep(0.5)\n"
        "        open('cleaned', 'w').close()\n"
    )
    assert ended(code, number, tmp_path) == (128 + number, last_line(number))
    assert (tmp_path / "cleaned").exists()


def test_a_system_that_grants_no_thread(tmp_path):
    code = (
        "def start(self):\n"
        '    raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = start\n"
        "ready()\n"
        "app = None\n"
    )
    code, err = ended(code, 0, tmp_path)
    assert code == 3 and err.startswith("error: can't start new thread: give the process more mem")
