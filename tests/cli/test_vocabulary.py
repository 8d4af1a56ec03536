"""One vocabulary: an option means the same in every command that has it, and helps are whole."""

import inspect
import os
import re
import typing
from collections import defaultdict

import pytest

from stan_infer.cli import options
from stan_infer.cli.app import app
from stan_infer.errors import InputError, nearest
from tests.cli.leaves import help_of, leaves
from tests.conftest import python
from tests.installs import sweep

# Where a command leaves out what it could have had: none may be added here without a reason.
HAVE = {
    "--json": {"inspect", "run", "embed", "eval", "export", "calibrate", "verify", "convert"}
    | {"bench", "doctor", "search", "serve", "watch"}
    | {"library inspect", "library verify", "library migrate"},
    "--threads": {"run", "embed", "eval", "export", "verify", "bench", "calibrate", "search"}
    | {"serve", "watch", "library verify", "library migrate"},
    "--workers": {"run", "embed", "eval", "calibrate", "library migrate"},
    "--batch": {"run", "embed", "eval", "export", "bench", "library migrate"},
    "--precision": {"run", "embed", "search", "serve", "eval", "export", "calibrate", "bench"}
    | {"watch", "library verify", "library migrate"},
    "--frames": {"run", "embed", "eval", "export", "verify", "bench", "inspect"}
    | {"watch", "library migrate"},
    "--device": {"run", "embed", "search", "serve", "eval", "bench"}
    | {"watch", "library verify", "library migrate"},
    "--template": {"run", "search", "serve", "eval", "export", "watch"},
}
OF_FILES = {"--out", "--compare"}  # the kind of file is another in each command; metavars say it


def commands():
    """Every command by name: its function and its parameters' (declared names, info, default)."""
    found = {}
    groups = [(f"{g.typer_instance.info.name} ", g.typer_instance) for g in app.registered_groups]
    for of, command in [(of, c) for of, a in [("", app), *groups] for c in a.registered_commands]:
        hints = typing.get_type_hints(command.callback, include_extras=True)
        parameters = []
        for name, parameter in inspect.signature(command.callback).parameters.items():
            if not hasattr(hints[name], "__metadata__"):
                continue
            (info,) = hints[name].__metadata__
            if type(info).__name__ == "OptionInfo":
                declared = info.param_decls or (f"--{name.replace('_', '-')}",)
                parameters.append((declared, hints[name], parameter.default))
        found[of + command.callback.__name__] = parameters
    return found


def by_name():
    found = defaultdict(dict)
    for command, parameters in commands().items():
        for declared, hint, default in parameters:
            long = next(d for d in declared if d.startswith("--")).partition("/")[0]
            found[long][command] = (declared, hint, default)
    return found


def form(hint, default):
    """What must not differ: the type apart from None, and all that the help shows."""
    (info,) = hint.__metadata__
    kinds = {t for t in typing.get_args(hint.__origin__) or (hint.__origin__,)} - {type(None)}
    is_list = typing.get_origin(hint.__origin__) is list
    default = None if default is inspect.Parameter.empty else default
    return (
        is_list,
        frozenset(map(str, kinds)),
        info.metavar,
        info.min,
        info.max,
        info.help,
        default,
    )


@pytest.mark.parametrize("name", sorted(n for n, of in by_name().items() if len(of) > 1))
def test_an_option_means_the_same_everywhere(name):
    uses = by_name()[name]
    if name in OF_FILES:
        assert len({declared for declared, _, _ in uses.values()}) == 1
        assert all(hint.__metadata__[0].metavar for _, hint, _ in uses.values())
        return
    if name in options.FORMS:
        known = [f.__metadata__[0] for f in options.FORMS[name]]
        assert all(hint.__metadata__[0] in known for _, hint, _ in uses.values()), name
        heads = {re.split(r"[:(.]", info.help)[0].strip() for info in known}
        assert len(heads) == 1, heads
        assert len({info.metavar for info in known}) >= len(known) - 2
        return
    assert len({form(hint, default) for _, hint, default in uses.values()}) == 1, uses


def test_shared_options_are_defined_once():
    shared = {id(h.__metadata__[0]) for h in vars(options).values() if hasattr(h, "__metadata__")}
    for name, uses in by_name().items():
        if len(uses) > 1 and name not in OF_FILES:
            assert {id(hint.__metadata__[0]) for _, hint, _ in uses.values()} <= shared, name


@pytest.mark.parametrize("name", sorted(HAVE))
def test_every_command_that_could_have_one_has_it(name):
    assert set(by_name()[name]) == HAVE[name]


def test_summaries_are_whole_sentences_at_80_columns():
    done = python("-m", "stan_infer", "--help", env={**os.environ, "COLUMNS": "80"})
    part = done.stdout.partition("Commands:")[2].partition("Exit codes")[0]
    lines = re.findall(r"^  (\w+) +(.*)$", part, re.MULTILINE)
    assert {name for name, _ in lines} == {name.partition(" ")[0] for name in commands()}
    assert all(text.endswith(".") and not text.endswith("...") for _, text in lines), lines
    assert "--install-completion" in done.stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_helps_are_read_at_any_width(columns, monkeypatch):
    """Ranges and types are in words, no name is broken, and nothing is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", str(columns))
    widest = 0
    for name, command in leaves().items():
        text = help_of(name)
        lines = text.splitlines()
        widest = max(widest, *map(len, lines))
        assert not re.search(r"<[a-z]|x[<>]=|[{}]|\[\[", text.replace("{}", "")), text
        assert not [line for line in lines if line.rstrip().endswith("-")], text
        assert text.isascii() and text.count("[") == text.count("]")
        assert not re.search(r"\[[^]]*\n[^]]*\]", text), text
        for option in command.params:
            is_flag = getattr(option, "is_flag", False)
            assert is_flag or option.metavar, f"{name} {option.name} has no metavar"
    assert columns - 15 < widest < columns


def test_completion_of_a_shell():
    words = {"_STAN_INFER_COMPLETE": "complete_bash", "COMP_WORDS": "stan-infer run --win"}
    code = "import sys; sys.argv = ['stan-infer']; from stan_infer.cli.main import main; main()"
    for given, wanted in (({}, "--windows"), ({"COMP_WORDS": "stan-infer cal"}, "calibrate")):
        at = str(len((words | given)["COMP_WORDS"].split()) - 1)
        done = python("-c", code, env={**os.environ, **words, **given, "COMP_CWORD": at})
        assert done.stdout.split() == [wanted]


@pytest.mark.parametrize(
    ("word", "known", "wanted"),
    [
        ("onnx", ("eager", "compile", "triton", "ort", "openvino", "trt"), "ort"),
        ("GPU", ("cpu", "cuda"), "cuda"),
        ("gpu", ("cpu", "gpu"), "gpu"),
        ("half", ("fp32", "fp16", "bf16"), "fp16"),
        ("tensorrt", ("ort", "trt", "trt-rtx"), "trt"),
        ("openvin", ("ort", "openvino"), "openvino"),
    ],
)
def test_words_of_other_tools_are_answered_with_ours(word, known, wanted):
    assert nearest(word, known) == f"; did you mean '{wanted}'?"


def test_8_bits_are_answered_with_the_command_that_makes_them():
    from stan_infer.artefacts.precision import check_precision

    with pytest.raises(InputError, match="stan-infer calibrate CKPT_OR_DIR --precision int8"):
        check_precision("engine eager", "int8", ("fp32",))
    with pytest.raises(InputError, match="did you mean 'fp16'"):
        check_precision("engine eager", "float16", ("fp32", "fp16"))


def test_threads_reach_every_engine(folder):
    import torch

    from stan_infer.engines.open import open_graph
    from stan_infer.engines.thread_count import thread_count

    before, own = torch.get_num_threads(), open_graph(folder / "video.onnx").describe()["threads"]
    with thread_count(3):
        assert torch.get_num_threads() == 3 and os.environ["OMP_NUM_THREADS"] == "3"
        graph = open_graph(folder / "video.onnx")
        assert graph.describe()["threads"] == 3
    assert torch.get_num_threads() == before
    assert open_graph(folder / "video.onnx").describe()["threads"] == own


def test_the_sweep_of_installs_runs_every_command():
    rows = [*sweep.rows(*5 * [""]), *sweep.library_rows(*3 * [""])]
    ran = {" ".join(words[:n]) for words, _ in rows for n in (1, 2)}
    assert {*leaves()} - ran == {"doctor"}  # tests/installs/__main__.py runs it
