"""Commands about disk space: df, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from poclab import output
from poclab.cli import context
from poclab.cli.context import OutputOption
from poclab.output import Format

if TYPE_CHECKING:
    from poclab.space import SpaceRow


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(df)


def df(form: OutputOption = Format.TABLE) -> None:
    """List what versions and labs take on the disk, and what of that is shared."""
    from poclab.space import space

    with context.host() as host:
        rows = space(host)
    output.listing(rows, output.SPACE, form, lambda row: row.name)
    if form is Format.TABLE and not context.options().quiet:
        output.tell(_summary(rows))


def _summary(rows: list[SpaceRow]) -> str:
    """The line after the table."""
    *_, garbage, total = rows
    text = f"{output.size(total.allocated)} on the disk"
    if total.allocated:
        text += f", {total.full / total.allocated:.1f} times that as full snapshots"
    if garbage.unique is None:
        return f"{text}; garbage: {output.size(garbage.allocated)}"
    return f"{text}; `poclab gc` would free {output.size(garbage.unique)}"
