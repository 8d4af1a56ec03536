"""An option that takes one value is given once, in every command."""

import pytest
from typer.main import get_command

from stan_infer.cli.app import app

COMMANDS = get_command(app).commands
# Those that mean more when they are repeated.
REPEATED = {"--text", "--template", "--set", "--eval"}


def options():
    """Every option of every command that takes a value, or has two forms, by its longest name."""
    for name, command in COMMANDS.items():
        for option in command.params:
            if option.param_type_name == "option" and (not option.is_flag or option.secondary_opts):
                yield pytest.param(name, option, id=f"{name}{max(option.opts, key=len)}")


@pytest.mark.parametrize(("command", "option"), list(options()))
def test_an_option_that_is_given_twice(cli, command, option):
    long = max(option.opts, key=len)
    words = [option.opts[0]] if option.is_flag else [option.opts[0], "1"]
    again = [option.secondary_opts[0]] if option.is_flag else [f"{long}=2"]
    if long in REPEATED:
        assert option.multiple
        return
    done = cli(command, *words, *again, code=2)
    names = "/".join([*option.opts, *option.secondary_opts])
    assert done.err == f"error: {names} is given 2 times, but takes one value: give it once\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_value(cli, command, checkpoint):
    """As of "$NAME" that is not set: no folder ".", and no default in its place."""
    for parameter in COMMANDS[command].params:
        name = parameter.metavar
        words = [""]
        if parameter.param_type_name == "option":
            if parameter.is_flag:
                continue
            name, words = "/".join(parameter.opts), [parameter.opts[0], ""]
        elif parameter.name == "videos" or parameter.name in ("b", "target"):
            words = [checkpoint, ""]
        done = cli(command, *words, code=2)
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


def test_help_is_shown_whatever_else_is_given(cli):
    assert "Usage" in cli("run", "--top", "1", "--top", "5", "--help").out
