"""Commands about disks that VMs were taken off: restore, parked ls, drop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poclab import output
from poclab.cli import context
from poclab.cli.context import OutputOption, YesOption
from poclab.errors import UsageError
from poclab.output import Format
from poclab.units import parse_duration

if TYPE_CHECKING:
    from poclab.parked import Lifetime

DEFAULT_LIFETIME = "7d"
KeepOldOption = Annotated[
    bool,
    typer.Option(
        "--keep-old/--no-keep-old",
        envvar="POCLAB_KEEP_OLD",
        help="Keep the disks it leaves, for `poclab restore`.",
    ),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(
        "--expires",
        metavar="TIME",
        help=f"How long: 12h, 7d or never; {DEFAULT_LIFETIME} when left out.",
    ),
]

app = typer.Typer(help="Disks that VMs were taken off, for `restore`.", no_args_is_help=True)


def lifetime(keep_old: bool, expires: str | None) -> Lifetime:
    """What two options say of how long disks are kept.

    Raises:
        UsageError: they do not go together, or the text is no duration.
    """
    from poclab.parked import NEVER, Keep

    if not keep_old:
        if expires is None:
            return None
        raise UsageError("--expires keeps nothing by itself", fix="--keep-old --expires TIME")
    text = expires or DEFAULT_LIFETIME
    if text == NEVER:
        return Keep(None)
    try:
        return Keep(parse_duration(text))
    except ValueError as error:
        raise UsageError(f"--expires {text}: {error}, or never") from None


def _complete_parked(incomplete: str) -> list[str]:
    """Parked disks, as `VM@TIME` and `LAB/VM@TIME`."""
    from poclab.parked import Lot

    try:
        with context.host() as host:
            kept = Lot.of(host.pool).kept(host.vms())
    except Exception:  # completion never prints an error
        return []
    names = {name for item in kept for name in (item.name, item.name.partition("/")[2])}
    return sorted(name for name in names if name.startswith(incomplete))


def register(app: typer.Typer) -> None:
    """Add `restore` to the program."""
    app.command()(restore)


def restore(
    vm: Annotated[
        str,
        typer.Argument(
            metavar="VM[@TIME]",
            help="VM or LAB/VM, and the time it was taken off that disk; else the latest.",
            autocompletion=_complete_parked,
        ),
    ],
    keep_old: KeepOldOption = False,
    expires: ExpiresOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is ready.")] = True,
    form: OutputOption = Format.TABLE,
) -> None:
    """Put a VM back on the disk that `reset --keep-old` took it off."""
    from poclab.cli.vm import show_reset
    from poclab.restore import restore as put_back

    keep = lifetime(keep_old, expires)
    with context.host() as host:
        results = put_back(host, vm, keep_old=keep, wait=wait)
        show_reset(host, results, form if wait else None)


@app.command("ls")
def ls(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[LAB|VM]...", help="Only of these.", autocompletion=context.complete_up_lab
        ),
    ] = None,
    form: OutputOption = Format.TABLE,
) -> None:
    """List the disks that VMs can be put back on."""
    from poclab.parking import rows

    with context.host() as host:
        found = rows(host, names or ())
    empty = "no disk is parked" + (f" of {', '.join(names)}" if names else "")
    output.listing(
        found, output.PARKED, form, lambda row: f"{row.lab}/{row.vm}@{row.time}", empty=empty
    )


@app.command("drop")
def drop(
    names: Annotated[
        list[str],
        typer.Argument(metavar="VM@TIME...", help="Which.", autocompletion=_complete_parked),
    ],
    yes: YesOption = False,
) -> None:
    """Delete parked disks."""
    from poclab.parked import Lot
    from poclab.parking import drop as delete
    from poclab.parking import meant

    with context.host() as host:
        kept = Lot.of(host.pool).kept(host.vms())
        found = list(dict.fromkeys(meant(kept, name).name for name in names))
        if not context.confirmed(f"Delete the parked disk of {', '.join(found)}?", yes=yes):
            output.tell("nothing was deleted")
            raise typer.Exit(1)
        delete(host, found)
    for name in found if not context.options().quiet else ():
        output.tell(f"{name} is deleted")
