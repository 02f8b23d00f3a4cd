"""`poclab switch`: another version in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poclab.cli import completion, context, output, prompts, results
from poclab.cli.options import OutputOption, YesOption
from poclab.cli.output import Format
from poclab.model.version import Transport

if TYPE_CHECKING:
    pass


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(switch)


def switch(
    vm: Annotated[
        str,
        typer.Argument(metavar="VM", help="VM or LAB/VM.", autocompletion=completion.complete_vm),
    ],
    to: Annotated[str, typer.Option("--to", metavar="TAG", help="The version.")],
    transport: Annotated[
        Transport,
        typer.Option("--transport", help="Carry the container image in, or fetch it there."),
    ] = Transport.OCI,
    yes: YesOption = False,
    form: OutputOption = Format.TABLE,
) -> None:
    """Have bootc in a running VM boot another version in place; /etc and /var stay."""
    from poclab.labs.selectors import find_vm
    from poclab.labs.switch import switch as put

    with context.host() as host:
        target = find_vm(host.vms(), vm)
        question = f"Reboot {target.record.path} into {target.record.version.image}:{to}?"
        if not prompts.confirmed(question, yes=yes):
            output.tell("nothing was done")
            raise typer.Exit(1)
        done = put(host, target, to, transport)
        results.show_vms(host, {done.path}, form)
