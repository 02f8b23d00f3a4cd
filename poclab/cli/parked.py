"""Commands about disks that VMs were taken off: restore, parked ls, drop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poclab.cli import completion, context, output, prompts, tables
from poclab.cli.options import ExpiresOption, KeepOldOption, OutputOption, YesOption, lifetime
from poclab.cli.output import Format

if TYPE_CHECKING:
    pass


app = typer.Typer(help="Disks that VMs were taken off, for `restore`.", no_args_is_help=True)


def _complete_parked(incomplete: str) -> list[str]:
    """Parked disks, as `VM@TIME` and `LAB/VM@TIME`."""
    from poclab.store.parked import ParkedDisks

    try:
        with context.host() as host:
            kept = ParkedDisks.of(host.pool).kept(host.vms())
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
    from poclab.cli.results import show_reset
    from poclab.labs.restore import restore as put_back

    keep = lifetime(keep_old, expires)
    with context.host() as host:
        results = put_back(host, vm, keep_old=keep, wait=wait)
        show_reset(host, results, form if wait else None)


@app.command("ls")
def ls(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[LAB|VM]...", help="Only of these.", autocompletion=completion.complete_up_lab
        ),
    ] = None,
    form: OutputOption = Format.TABLE,
) -> None:
    """List the disks that VMs can be put back on."""
    from poclab.labs.parked import rows

    with context.host() as host:
        found = rows(host, names or ())
    empty = "no disk is parked" + (f" of {', '.join(names)}" if names else "")
    output.listing(
        found, tables.PARKED, form, lambda row: f"{row.lab}/{row.vm}@{row.time}", empty=empty
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
    from poclab.labs.parked import drop as delete
    from poclab.labs.parked import meant
    from poclab.store.parked import ParkedDisks

    with context.host() as host:
        kept = ParkedDisks.of(host.pool).kept(host.vms())
        found = list(dict.fromkeys(meant(kept, name).name for name in names))
        if not prompts.confirmed(f"Delete the parked disk of {', '.join(found)}?", yes=yes):
            output.tell("nothing was deleted")
            raise typer.Exit(1)
        delete(host, found)
    for name in found if not context.options().quiet else ():
        output.tell(f"{name} is deleted")
