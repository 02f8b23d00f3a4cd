"""The command that makes installers: image iso."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from poclab import output
from poclab.cli import context
from poclab.errors import UsageError
from poclab.model import Ref
from poclab.names import shown
from poclab.units import format_size

if TYPE_CHECKING:
    from poclab.builders.base import Output
    from poclab.iso import Iso


def register(app: typer.Typer) -> None:
    """Add the command to `poclab image`."""
    app.command()(iso)


def iso(
    ref: Annotated[str, typer.Argument(metavar="NAME:TAG", help="A version that was built.")],
    target: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="The ISO to make.")],
    kickstart: Annotated[
        str | None,
        typer.Option("--kickstart", metavar="FILE", help="What the installer is to do."),
    ] = None,
    unattended: Annotated[
        bool,
        typer.Option("--unattended", help="Have it erase the disks and install, unasked."),
    ] = False,
    blueprint: Annotated[
        str | None,
        typer.Option("--blueprint", metavar="FILE", help="A blueprint for the installer."),
    ] = None,
    installer: Annotated[
        str | None,
        typer.Option("--installer", metavar="IMAGE", help="The container image that installs."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Left out: by --installer."),
    ] = None,
    builder: Annotated[
        str, typer.Option("--builder", metavar="NAME", help="What makes it.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Make an installer ISO of a version's container image, for USB sticks and real machines."""
    from poclab.iso import Wish, make_iso
    from poclab.store import Store

    name = Ref.parse(ref)
    wish = Wish(
        target=Path(target),
        force=force,
        kickstart=Path(kickstart) if kickstart else None,
        unattended=unattended,
        blueprint=Path(blueprint) if blueprint else None,
        installer=installer,
        output=_type(kind),
        builder=builder,
    )
    with context.host() as host:
        made = make_iso(Store(host.pool, host.uri), name, wish)
    _show(made)


def _type(name: str | None) -> Output | None:
    from poclab.builders.base import ISOS

    if name is None:
        return None
    types = {found.name: found for found in ISOS}
    if name not in types:
        raise UsageError(
            f"--type {shown(name)} is no installer", fix=f"choose one of {', '.join(types)}"
        )
    return types[name]


def _show(made: Iso) -> None:
    """The digest as sha256sum prints it, to be piped into `sha256sum --check`; the rest aside."""
    output.say(f"{made.sha256.removeprefix('sha256:')}  {made.path}")
    if context.options().quiet:
        return
    output.tell(f"{made.path}: {format_size(made.size)}, volume {made.label or 'without a label'}")
    output.tell("to a USB stick, which is erased (see its name with lsblk):")
    file = quote(str(made.path))
    output.tell(f"  sudo dd if={file} of=/dev/sdX bs=4M status=progress oflag=direct conv=fsync")
    output.tell(f"or to a stick with Ventoy, beside others: cp {file} /media/VENTOY/")
