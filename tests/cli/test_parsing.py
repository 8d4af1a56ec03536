"""An option that takes one value is given once, in every command."""

import enum

import pytest

from stan_infer.cli.parsing import _allowed
from tests.cli.leaves import leaves

COMMANDS = leaves()
# Those that mean more when they are repeated.
REPEATED = {"--text", "--template", "--set", "--eval", "--not", "--like", "--like-frame"}


def options():
    """Every option of every command that takes a value, or has two forms, by its longest name."""
    for name, command in COMMANDS.items():
        for option in command.params:
            if option.param_type_name == "option" and (not option.is_flag or option.secondary_opts):
                yield pytest.param(name, option, id=f"{name} {max(option.opts, key=len)}")


@pytest.mark.parametrize(("command", "option"), list(options()))
def test_an_option_that_is_given_twice(cli, command, option):
    long = max(option.opts, key=len)
    words = [option.opts[0]] if option.is_flag else [option.opts[0], "1"]
    again = [option.secondary_opts[0]] if option.is_flag else [f"{long}=2"]
    if long in REPEATED:
        assert option.multiple
        return
    done = cli(*command.split(), *words, *again, code=2)
    names = "/".join([*option.opts, *option.secondary_opts])
    assert done.err == f"error: {names} is given 2 times, but takes one value: give it once\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_value(cli, command, checkpoint):
    """As of "$NAME" that is not set: no folder ".", and no default in its place."""
    before = []  # a word for each argument before
    for parameter in COMMANDS[command].params:
        name = parameter.metavar
        words = [*before, ""]
        if parameter.param_type_name == "option":
            if parameter.is_flag:
                continue
            name, words = "/".join(parameter.opts), [parameter.opts[0], ""]
        else:
            before.append(checkpoint)
        done = cli(*command.split(), *words, code=2)
        assert done.err == f"error: {name} is empty (a variable that is not set?)\n"


def test_what_may_be_repeated(cli, checkpoint, videos):
    words = ("--text", "a", "--text", "b", "--template", "a {}", "--template", "the {}")
    done = cli("run", checkpoint, videos, *words, "--json", "--json")
    assert [len(record["scores"]) for record in done.records] == [2, 2, 2]


def test_a_field_that_is_set_twice(cli, checkpoint):
    words = ("inspect", checkpoint, "--set", "max-frames=4", "--set", "max_frames=8")
    cli(*words, code=2, says="--set max_frames is given twice: give it once")


def test_a_flag_that_says_the_same_twice(cli, checkpoint):
    words = ("--repeats", 1, "--min-seconds", 0, "--no-memory", "--no-memory", "--engine", "eager")
    cli("bench", checkpoint, *words, "--set", "frames", code=2, says="is not KEY=VALUE")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run", "CKPT_OR_DIR is missing; write stan-infer run CKPT_OR_DIR VIDEOS"),
        ("run m", "VIDEOS is missing; write"),
        (
            "embed m v",
            "-o/--out FILE|LIBRARY is missing; write stan-infer embed CKPT_OR_DIR ",
        ),
        ("run m v --txet a", "there is no option --txet; did you mean '--text'?"),
        ("run m v -json", "there is no option -json; did you mean '--json'?"),
        ("run m v -x", "there is no option -x; `stan-infer run --help` lists the options"),
        ("run m v -v", "-v goes before the command: stan-infer -v run ..."),
        (
            "run m -name.mp4",
            "there is no option -name.mp4; for a file of that name write ./-name.mp4",
        ),
        ("run m v --text", "--text needs a value, as in --text TEXT"),
        ("run m v --json=1", "--json takes no value: give --json alone"),
        ("run m v --frames 65", "--frames is '65'; give a whole number from 1 to 64"),
        ("run m v --frames x", "--frames is 'x'; give a whole number from 1 to 64"),
        ("run m v --top -1", "--top is '-1'; give a whole number from 0 on"),
        ("run m v --timeout 0", "--timeout is '0'; give a number from 0.001 on"),
        ("run m v --timeout nan", "--timeout is 'nan'; give a number from 0.001 on"),
        ("run m v --end 1e999", "--end is '1e999'; give a number from 0 on"),
        ("run m v --end inf", "--end is 'inf'; give a number from 0 on"),
        ("bench --min-seconds 4e3", "--min-seconds is '4e3'; give a number from 0 to 3600"),
        ("verify a b --tolerance nan", "--tolerance is 'nan'; give a number from 0 on"),
        (
            "calibrate m --videos v -o x --min-cosine 2",
            "--min-cosine is '2'; give a number from 0 to 1",
        ),
        ("inspect m extra", "extra is one word too many; write stan-infer inspect CKPT_OR_DIR; `"),
        ("export m out", "out is one word too many; give -o out; `stan-infer export --help` lists"),
        ("calibrate m . -o x --videos v", ". is one word too many; write stan-infer calibrate"),
        ("calibrate m . -o x", ". is one word too many; give --videos .; `"),
        ("exprot x", "command 'exprot' is unknown; did you mean 'export'? (inspect, run,"),
        ("score x", "command 'score' is unknown; did you mean 'run'?"),
        (". --text a", ". is a file or folder; a command goes before it (inspect, run,"),
        ("help run", "help is an option: give --help"),
        ("--verbos run", "there is no option --verbos; did you mean '--verbose'?"),
        ("-v", "Missing command; write stan-infer COMMAND [ARGS]...; `stan-infer --help` lists"),
    ],
)
def test_a_wrong_line_is_told_in_one(cli, words, message):
    """Whichever typer is here: it says these in several lines, or another way."""
    done = cli(*words.split(), code=2)
    assert done.out == "" and done.err.count("\n") == 1
    assert done.err.startswith(f"error: {message}"), done.err


NOT_OURS = ["1_0", " 5", "5 ", "٥", "0x10", "5,", "+-5"]  # of these Python takes most


@pytest.mark.parametrize("name", COMMANDS)
def test_numbers_are_written_in_digits(cli, name):
    """In every option that takes a number: what Python takes besides is refused with its range."""
    for option in COMMANDS[name].params:
        allowed = _allowed(option)
        if not allowed or option.is_flag:
            continue
        more = ["5.0", "1e1"] if "whole" in allowed else ["1_0.5", "1e1_0", "infinity", "."]
        for word in NOT_OURS + more:
            done = cli(*name.split(), f"{option.opts[0]}={word}", code=2)
            assert done.err == f"error: {'/'.join(option.opts)} is {word!r}; {allowed}\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--windows", "1_0"], "--windows '1_0' is not SECONDS or SECONDS:STRIDE"),
        (["--windows", "10:٥"], "is not SECONDS or SECONDS:STRIDE"),
        (["--windows", "inf"], "is not SECONDS or SECONDS:STRIDE"),
        (["--set", "frames=0_8"], "frames is '0_8'; it must be a whole number"),
        (["--device", "cuda:٥"], "device 'cuda:٥' is unknown"),
    ],
)
def test_so_are_numbers_within_a_word(cli, checkpoint, videos, words, says):
    cli("run", checkpoint, videos, "--text", "a", *words, code=2, says=says)


class Unset(enum.Enum):
    """As click 8.3 marks what was not given: an object that is neither None nor a value."""

    UNSET = enum.auto()


@pytest.mark.parametrize("name", COMMANDS)
def test_what_was_not_given_may_be_a_mark(name, checkpoint, monkeypatch):
    """The first parser, whose answer is ours to read, answers as that of click 8.3 does."""
    command, real = COMMANDS[name], COMMANDS[name].make_parser
    seen = []

    class Parser:
        def parse_args(self, args):
            found, extra, order = real(seen[0]).parse_args(args=args)
            marked = {p.name: Unset.UNSET for p in command.params if found.get(p.name) is None}
            arguments = [p for p in command.params if p.param_type_name == "argument"]
            return found | marked, extra, [*order, *(p for p in arguments if p not in order)]

    def make_parser(ctx):
        seen.append(ctx)
        return Parser() if len(seen) == 1 else real(ctx)

    monkeypatch.setattr(command, "make_parser", make_parser)
    words = []
    for p in command.params:
        if p.required:
            words += (
                ["-o", "x"] if "-o" in p.opts else [p.opts[0]] * (p.param_type_name != "argument")
            )
            words += [str(checkpoint)] if "-o" not in p.opts else []
    with command.make_context(name, words) as context:
        assert len(seen) == 2 and Unset.UNSET not in context.params.values()


def test_a_program_without_words_shows_its_help(cli):
    done = cli(code=(0, 2))  # by the version of click
    assert "Usage" in done.out + done.err and "error:" not in done.err


def test_help_is_shown_whatever_else_is_given(cli):
    assert "Usage" in cli("run", "--top", "1", "--top", "5", "--help").out
