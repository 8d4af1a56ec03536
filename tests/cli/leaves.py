"""Every command that does something, by its words."""

import typer
from typer.main import get_command

from stan_infer.cli.app import app
from stan_infer.cli.parsing import HELP_WIDTH


def leaves():
    """{"run": command, "library verify": command, ...}; groups of commands are left out."""
    found = {}
    for name, command in get_command(app).commands.items():
        of = getattr(command, "commands", None)
        found |= {name: command} if of is None else {f"{name} {n}": c for n, c in of.items()}
    return found


def help_of(name):
    """The help of a command, as the program prints it."""
    command, words, group = leaves()[name], name.split(), get_command(app)
    above = typer.Context(group, info_name="stan-infer", max_content_width=HELP_WIDTH)
    for word in words[:-1]:
        group = group.commands[word]
        above = typer.Context(group, info_name=word, parent=above)
    with command.make_context(words[-1], ["--help"], above, resilient_parsing=True) as context:
        return command.get_help(context)
