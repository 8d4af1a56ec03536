"""How a command line is taken apart and how its help is laid out, for all commands alike."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand, TyperGroup

from stan_infer.cli.examples import EXAMPLES
from stan_infer.errors import InputError, check_word, nearest, number, whole
from stan_infer.system.signals import EndedBySignal

HELP_WIDTH = 120  # at most; on a narrower terminal its width
# While lines are broken, these stand for hyphens, and for blanks in brackets.
_HYPHEN, _BLANK = "\N{NON-BREAKING HYPHEN}", "\N{NO-BREAK SPACE}"
_DASHES = "\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}"
_TYPE = re.compile(r" <[^<>]*>$")  # which typer puts behind the name of an argument
_BRACKETS = re.compile(r"\[[^][]{,30}\]$")  # what typer adds: the default, the range, "required"
_GIVEN = (str, bool, int, list, tuple)  # types of what a parser finds; int: an option counted
_RANGES = (
    (re.compile(r"(\S+)<=x<=(\S+)(?=[];])"), r"\1 to \2"),
    (re.compile(r"x>=(\S+)(?=[];])"), r"at least \1"),
)


class Command(TyperCommand):
    """A command whose options that take one value are given once, and no value is empty."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise InputError for an option that is given twice, of which one value would be lost.

        Also for an empty value, as of a variable of the shell that is not set: of a path it would
        be the current folder, of many options the default.
        """
        if ctx.resilient_parsing:  # that is the completion of a shell
            return super().parse_args(ctx, args)
        given = list(args)  # as the parser takes words away
        values: dict[str, Any] = {}
        with _in_one_line(ctx, given, values):
            found, extra, order = self.make_parser(ctx).parse_args(args=list(args))
            # What was not given is None, left out, or a mark of click's own, as versions have it.
            values |= {k: v for k, v in found.items() if isinstance(v, _GIVEN)}
            if not any("--help" in parameter.opts for parameter in order):
                _check_given_once(order, args)
                _check_not_empty(order, values)
                _check_hyphens(order, values)
                _check_numbers(order, values)
                if extra:
                    raise InputError(
                        f"{extra[0]} is one word too many; {_instead(extra[0], ctx, order)}"
                    )
            return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As CKPT VIDEOS..., without the braces that typer puts around what is required."""
        return [re.sub(r"[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """End with the examples, whose lines stay as they are."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            for line in EXAMPLES[_path(ctx)].splitlines():
                formatter.write(f"  {line}\n")

    def get_help(self, ctx: Any) -> str:
        """The help, in which lines end neither at hyphens nor within brackets."""
        kind = type("Formatter", (_WholeWords, ctx.formatter_class), {})
        formatter = kind(width=ctx.terminal_width, max_width=ctx.max_content_width)
        self.format_help(ctx, formatter)
        return str(formatter.getvalue().rstrip("\n"))


def _path(ctx: Any) -> str:
    """The name of a command behind that of the program, as in "library verify"."""
    above = ctx.parent
    return f"{_path(above)} {ctx.info_name}".strip() if above is not None else ""


class Program(TyperGroup):
    """The program with its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As a command's, for the options before it."""
        with _in_one_line(ctx, list(args), {}):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that a command line names; InputError for another word."""
        if not ctx.resilient_parsing:
            known = self.list_commands(ctx)
            if args[0] not in known and os.path.exists(args[0]):
                raise InputError(
                    f"{args[0]} is a file or folder; a command goes before it ({', '.join(known)})"
                )
            if args[0] == "help":
                raise InputError("help is an option: give --help, alone or after a command")
            check_word("command", args[0], known)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Hand Ctrl-C on to `main`: typer would end the program without a word."""
        try:
            with _in_one_line(ctx, [], {}):
                return super().invoke(ctx)
        except KeyboardInterrupt as e:
            raise EndedBySignal(signal.SIGINT) from e


class _WholeWords:
    """Goes before a formatter of click, which breaks lines at hyphens."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _HYPHEN))  # type: ignore[misc]

    def write_dl(self, rows: Any, *args: Any, **options: Any) -> None:
        found = [(_TYPE.sub("", name), _in_words(text)) for name, text in rows]
        super().write_dl(found, *args, **options)  # type: ignore[misc]

    def write(self, string: str) -> None:
        super().write(string.replace(_HYPHEN, "-").replace(_BLANK, " "))  # type: ignore[misc]


def _in_words(text: str) -> str:
    """The help of an option with its range as "1 to 64", not "1<=x<=64"."""
    text = text.replace("\\[", "[")  # typer 0.18 writes it so
    for pattern, words in _RANGES:
        text = pattern.sub(words, text)
    return _BRACKETS.sub(lambda m: m[0].replace(" ", _BLANK), text).replace("-", _HYPHEN)


@contextmanager
def _in_one_line(ctx: Any, args: Sequence[str], values: dict[str, Any]) -> Iterator[None]:
    """Turn what typer or click says of a command line, in several lines, into an InputError.

    values: what the parser found, by parameter. typer brings click's errors under names of its own
    from 0.29 on, so they are known by what they have.
    """
    try:
        yield
    except Exception as e:
        if not hasattr(e, "format_message") or type(e).__name__ == "NoArgsIsHelpError":
            raise
        raise InputError(_usage(e, ctx, args, values)) from e


def _usage(error: Any, ctx: Any, args: Sequence[str], values: dict[str, Any]) -> str:
    """What is wrong with a command line, and what to do."""
    kind, parameter = type(error).__name__, getattr(error, "param", None)
    option = str(getattr(error, "option_name", ""))
    if kind == "MissingParameter" and parameter is not None:
        what = "" if parameter.param_type_name == "argument" else f" {parameter.metavar}"
        return f"{_named(parameter)}{what} is missing; {_form(ctx)}"
    if kind == "BadParameter" and parameter is not None and parameter.name in values:
        allowed = _allowed(parameter) or error.message
        return f"{_named(parameter)} is {values[parameter.name]!r}; {allowed}"
    if kind == "NoSuchOption":
        return _no_option(next((a for a in args if a.startswith(option)), option), ctx)
    for known in ctx.command.params:
        if option in (*known.opts, *known.secondary_opts):
            if known.is_flag:
                return f"{option} takes no value: give {option} alone"
            return f"{option} needs a value, as in {option} {known.metavar}"
    return f"{error.message.rstrip('.')}; {_form(ctx)}"


def _no_option(word: str, ctx: Any) -> str:
    """The message about an option that a command does not have, by the word that was given."""
    name = word.partition("=")[0]
    above = ctx.parent.command.params if ctx.parent is not None else []
    if any(name in parameter.opts for parameter in above):
        program, _, command = ctx.command_path.rpartition(" ")
        return f"{name} goes before the command: {program} {name} {command} ..."
    if os.path.exists(word) or re.search(r"\.\w+$", name):
        return f"there is no option {name}; for a file of that name write ./{word}"
    opts = [o for p in ctx.command.params for o in p.opts if o.startswith("--")]
    near = nearest(f"--{name.lstrip('-')}", opts) if len(name) > 2 else ""
    return f"there is no option {name}{near or f'; {_help(ctx)}'}"


def _reader(parameter: Any) -> Callable[[str], float] | None:
    """What reads the number that a parameter takes; None for one that takes something else."""
    descriptor = getattr(parameter, "type_descriptor", None)  # from typer 0.29 on
    kind = str(parameter.type.name if descriptor is None else descriptor.annotation)
    return whole if "int" in kind else number if "float" in kind else None


def _allowed(parameter: Any) -> str:
    """What may be given for a parameter that takes a number; "" for another one."""
    reader = _reader(parameter)
    if reader is None:
        return ""
    descriptor = getattr(parameter, "type_descriptor", None)
    bounds = parameter.type if descriptor is None else descriptor.parameter_info
    low, high = (getattr(bounds, end, None) for end in ("min", "max"))
    kind = "a whole number" if reader is whole else "a number"
    if low is None:
        return f"give {kind}"
    return f"give {kind} " + (f"from {low} on" if high is None else f"from {low} to {high}")


def _instead(word: str, ctx: Any, given: Sequence[Any]) -> str:
    """What to write for a word that no argument takes: the option that it may be meant for."""
    for name in ("--videos", "-o") if os.path.exists(word) else ("-o",):
        if any(name in p.opts for p in ctx.command.params if p not in given):
            return f"give {name} {word}; {_help(ctx)}"
    return _form(ctx)


def _form(ctx: Any) -> str:
    """How a command is written: its arguments, and the options that it cannot do without."""
    pieces = [p for p in ctx.command.collect_usage_pieces(ctx) if p != "[OPTIONS]"]
    needed = [
        f"{p.opts[0]} {p.metavar}"
        for p in ctx.command.params
        if p.required and p.param_type_name == "option"
    ]
    return f"write {' '.join([ctx.command_path, *pieces, *needed])}; {_help(ctx)}"


def _help(ctx: Any) -> str:
    return f"`{ctx.command_path} --help` lists the options"


def _check_given_once(order: list[Any], args: list[str]) -> None:
    """order: the parameters in the order in which they were given, as `args`."""
    options = [p for p in order if p.param_type_name == "option"]
    for option, count in Counter(options).items():
        # --json twice says the same; --smooth and --no-smooth do not.
        says_one = option.is_flag and not all(
            {*names} & {*args} for names in (option.opts, option.secondary_opts)
        )
        if count > 1 and not (option.multiple or option.count or says_one):
            raise InputError(
                f"{_named(option)} is given {count} times, but takes one value: give it once"
            )


def _check_not_empty(order: list[Any], values: dict[str, Any]) -> None:
    for parameter in order:
        given = values.get(parameter.name)
        if "" in (given if isinstance(given, list | tuple) else [given]):
            raise InputError(f"{_named(parameter)} is empty (a variable that is not set?)")


def _check_hyphens(order: list[Any], values: dict[str, Any]) -> None:
    """Raise InputError for an option whose hyphens a text program has made a dash."""
    for parameter in order:
        given = values.get(parameter.name)
        words = given if isinstance(given, list | tuple) else [given]
        for word in words if parameter.param_type_name == "argument" else ():
            if word and word[0] in _DASHES and not os.path.exists(word):
                option = f"--{word.lstrip(_DASHES + '-')}"
                raise InputError(f"{word} begins with a dash: write two hyphens, as in {option}")


def _check_numbers(order: list[Any], values: dict[str, Any]) -> None:
    """Raise InputError for what only Python takes for a number: 1_0, NaN, digits of all scripts."""
    for parameter in order:
        given, reader = values.get(parameter.name), _reader(parameter)
        if reader is None:
            continue
        words = given if isinstance(given, list | tuple) else [given]
        for word in (w for w in words if isinstance(w, str)):
            try:
                reader(word)
            except ValueError:
                text = f"{_named(parameter)} is {word!r}; {_allowed(parameter)}"
                raise InputError(text) from None


def _named(parameter: Any) -> str:
    """The name of a parameter as its help has it."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    return "/".join([*parameter.opts, *parameter.secondary_opts])
