"""The command that checks the host."""

from __future__ import annotations

from typing import Annotated

import typer

from poclab.cli import context, output, tables
from poclab.cli.options import OutputOption
from poclab.cli.output import Format
from poclab.cli.tables import Column
from poclab.core.errors import PoclabError

ORPHANS = (Column("KIND", "kind"), Column("NAME", "name"), Column("WHY", "why"))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(doctor)


def doctor(
    orphans: Annotated[
        bool, typer.Option("--orphans", help="List what interrupted commands left, only that.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Repair first what can be repaired.")] = False,
    form: OutputOption = Format.TABLE,
) -> None:
    """Check what poclab needs of this host; exits with 1 when something is missing."""
    given = context.options()
    if fix:
        _fix(given.connect, given.accel)
    if orphans:
        _orphans(form)
        return
    from poclab.maintenance.doctor import examine

    rows = examine(given.connect, given.accel)
    output.listing(rows, tables.CHECKS, form, lambda row: row.check)
    if any(row.result == "missing" for row in rows):
        raise typer.Exit(1)


def _fix(uri: str | None, accel: str) -> None:
    from poclab.maintenance.repair import mend

    failed: list[PoclabError] = []
    count = 0
    for item in mend(uri, accel):
        if isinstance(item, PoclabError):
            failed.append(item)
        else:
            output.tell(item)
            count += 1
    for error in failed:
        output.show_error(error)
    if failed:
        raise typer.Exit(1)
    if not count:
        output.tell("nothing to repair")


def _orphans(form: Format) -> None:
    from poclab.maintenance.orphans import orphans

    with context.host() as host:
        rows = orphans(host)
    output.listing(rows, ORPHANS, form, lambda row: row.name, empty="nothing is left over")
    if rows:
        raise typer.Exit(1)
