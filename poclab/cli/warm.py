"""Commands about warm states: warm ls, drop."""

from __future__ import annotations

from typing import Annotated

import typer

from poclab.cli import context, output, tables
from poclab.cli.options import LabOption, OutputOption, VmsArgument
from poclab.cli.output import Format
from poclab.core.errors import UsageError

app = typer.Typer(help="Memory that was kept for warm resets.", no_args_is_help=True)


@app.command("ls")
def ls(form: OutputOption = Format.TABLE) -> None:
    """List warm states."""
    from poclab.labs.warm import rows

    with context.host() as host:
        found = rows(host)
    empty = "there is no warm state"
    output.listing(found, tables.WARM, form, lambda row: f"{row.lab}/{row.vm}", empty=empty)


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
    from poclab.labs.selectors import find_lab, find_vm
    from poclab.labs.warm import drop_states

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
