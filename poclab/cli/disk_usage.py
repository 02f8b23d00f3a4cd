"""Commands about disk space: df, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poclab.cli import context, output, prompts, tables
from poclab.cli.options import OutputOption, YesOption
from poclab.cli.output import Format
from poclab.cli.tables import Column
from poclab.core import hints
from poclab.core.errors import UsageError

if TYPE_CHECKING:
    from poclab.maintenance.df import SpaceRow

_REMOVALS = (
    Column("KIND", "kind"),
    Column("NAME", "name"),
    Column("FREES", "frees", tables.size),
    Column("WHY", "why"),
)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(df)
    app.command()(gc)


def df(form: OutputOption = Format.TABLE) -> None:
    """List what versions and labs take on the disk, and what of that is shared."""
    from poclab.maintenance.df import space

    with context.host() as host:
        rows = space(host)
    output.listing(rows, tables.SPACE, form, lambda row: row.name)
    if form is Format.TABLE and not context.options().quiet:
        output.tell(_summary(rows))
        _tell_builder_cache()


def _summary(rows: list[SpaceRow]) -> str:
    """The line after the table."""
    *_, garbage, total = rows
    text = f"{tables.size(total.allocated)} on the disk"
    if total.allocated:
        text += f"; as full snapshots it would be {tables.size(total.full)}"
    if garbage.unique is None:
        return f"{text}; garbage: {tables.size(garbage.allocated)}"
    return f"{text}; `poclab gc` would free {tables.size(garbage.unique)}"


def _tell_builder_cache(*, how: bool = False) -> None:
    """Name the cache of this machine's image-builder, which is no part of poclab's own figures.

    Args:
        how: say how to empty it.
    """
    from poclab.builders import cache

    found = cache.look()
    if found is None:
        return
    size = f"up to {tables.size(cache.MOST)}" if found.size is None else tables.size(found.size)
    text = f"{size} more in image-builder's cache on this machine, {found.path}"
    empty = hints.command("sudo", "rm", "-r", str(found.path))
    more = f"; to empty it while nothing is built: {empty}" if how else ""
    output.tell(text + more)


def gc(
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            metavar="N",
            min=1,
            help="Old versions as well: all but the newest N of each image.",
        ),
    ] = None,
    precious: Annotated[
        bool,
        typer.Option("--precious", help="With --keep: also versions that cannot be built again."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed.")
    ] = False,
    yes: YesOption = False,
    form: OutputOption = Format.TABLE,
) -> None:
    """Remove what nobody reaches and, with --keep, old versions that nobody uses."""
    from poclab.maintenance.gc import CleanUp, look, remove

    if precious and keep is None:
        raise UsageError("--precious alone removes nothing", fix="say how many stay: --keep N")
    request = CleanUp(keep, precious)
    with context.host() as host:
        found = look(host, request)
        output.listing(
            found, _REMOVALS, form, lambda row: row.name, empty="there is nothing to remove"
        )
        if form is Format.TABLE and not context.options().quiet:
            _tell_builder_cache(how=True)
        if dry_run or not found:
            _tell_sum("would free", [row.frees for row in found])
            return
        if not prompts.confirmed(f"Remove {len(found)} things?", yes=yes):
            output.tell("nothing was removed")
            raise typer.Exit(1)
        gone = remove(host, request, found)
    for row in found:
        if row not in gone:
            output.tell(f"{row.name} stays: it is in use by now")
    _tell_sum("freed", [row.frees for row in gone])


def _tell_sum(what: str, sizes: list[int]) -> None:
    if sizes and not context.options().quiet:
        output.tell(f"{what} {tables.size(sum(sizes))}")
