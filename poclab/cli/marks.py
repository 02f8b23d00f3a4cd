"""Commands about marks of labs: mark, marks, unmark."""

from __future__ import annotations

from typing import Annotated

import typer

from poclab.cli import completion, context, output, tables
from poclab.cli.options import OutputOption
from poclab.cli.output import Format
from poclab.core.plaintext import plain

_Lab = Annotated[
    str, typer.Argument(metavar="LAB", help="The lab.", autocompletion=completion.complete_up_lab)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(mark)
    app.command("marks")(list_)
    app.command()(unmark)


def mark(
    lab: _Lab,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The mark to make.")],
    commit: Annotated[
        bool, typer.Option("--commit", help="Make versions of VMs that were written to.")
    ] = False,
    message: Annotated[
        str, typer.Option("--message", metavar="TEXT", help="A line to keep with the mark.")
    ] = "",
    quiesce: Annotated[
        bool,
        typer.Option(
            "--quiesce/--no-quiesce",
            help="With --commit: have guest agents write everything out first.",
        ),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Move a mark that is there.")] = False,
) -> None:
    """Name the versions that a lab's VMs run, to bring exactly these back with reset."""
    from poclab.labs import mark as marking

    request = marking.MarkRequest(lab, name, plain(message), commit, quiesce, force)
    with context.host() as host:
        made = marking.mark(host, request)
    if not context.options().quiet:
        versions = ", ".join(f"{item.vm} {item.version}" for item in made.vms)
        output.tell(f"{made.name} of {made.lab} is {versions}")


def list_(
    lab: Annotated[
        str | None,
        typer.Argument(
            metavar="[LAB]", help="Only those of it.", autocompletion=completion.complete_up_lab
        ),
    ] = None,
    form: OutputOption = Format.TABLE,
) -> None:
    """List the marks of labs."""
    from poclab.labs.mark import rows

    with context.host() as host:
        found = rows(host, lab)
    empty = "there is no mark" if lab is None else f"{lab} has no mark"
    output.listing(found, tables.MARKS, form, lambda row: f"{row.lab}@{row.name}", empty=empty)


def unmark(
    lab: _Lab,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The mark to remove.", autocompletion=completion.complete_mark
        ),
    ],
) -> None:
    """Remove a mark; the versions it names stay."""
    from poclab.labs.mark import unmark as remove

    with context.host() as host:
        remove(host, lab, name)
    if not context.options().quiet:
        output.tell(f"{lab} has no mark {name} any more; its versions stay")
