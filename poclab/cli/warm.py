"""Commands about warm states: warm ls, drop."""

from __future__ import annotations

from typing import Annotated

import typer

from poclab import output
from poclab.cli import context
from poclab.cli.context import LabOption, OutputOption, VmsArgument
from poclab.errors import UsageError
from poclab.output import Format

app = typer.Typer(help="Memory that was kept for warm resets.", no_args_is_help=True)


@app.command("ls")
def ls(form: OutputOption = Format.TABLE) -> None:
    """List warm states."""
    from poclab.warm import rows

    with context.host() as host:
        found = rows(host)
    empty = "there is no warm state"
    output.listing(found, output.WARM, form, lambda row: f"{row.lab}/{row.vm}", empty=empty)


@app.command("drop")
def drop(
    vms: VmsArgument = None,
    lab: LabOption = None,
    every: Annotated[bool, typer.Option("--all", help="Of every VM.")] = False,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TAG", help="Only those of this version.")
    ] = None,
) -> None:
    """Delete warm states; the next reset boots."""
    from poclab.find import find_lab, find_vm
    from poclab.warm import drop_states

    if every == bool(vms):
        raise UsageError("name VMs, or say --all")
    with context.host() as host:
        there = host.vms()
        if every:
            targets = find_lab(there, lab) if lab is not None else there
        else:
            targets = [find_vm(there, name, lab) for name in vms or ()]
        count = drop_states(host, {vm.record.path for vm in targets}, to)
    if not context.options().quiet:
        many = f"{count} warm state{'' if count == 1 else 's'} deleted"
        output.tell(many if count else "there was no such warm state")
