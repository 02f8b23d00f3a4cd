"""The commands about installers: image iso, image write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poclab import hints, output
from poclab.cli import context
from poclab.errors import UsageError
from poclab.model import Ref
from poclab.names import shown
from poclab.units import format_size

if TYPE_CHECKING:
    from poclab.blockdevice import Stick
    from poclab.builders.base import Output
    from poclab.iso import Iso


def register(app: typer.Typer) -> None:
    """Add the commands to `poclab image`."""
    app.command()(iso)
    app.command()(write)


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
    device: Annotated[
        str | None,
        typer.Option("--write", metavar="DEVICE", help="Then write it onto a USB stick."),
    ] = None,
) -> None:
    """Make an installer ISO of a version's container image, for real machines."""
    from poclab.iso import Wish, make_iso
    from poclab.store import Store

    name = Ref.parse(ref)
    if device is not None:
        _stick(device)  # before minutes are spent
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
    if device is not None:
        _burn(made.path, device)


def write(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An ISO.")],
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="A USB stick, as /dev/sdX.")],
) -> None:
    """Write an ISO onto a USB stick, and read it back."""
    from poclab import iso9660

    path = Path(file)
    if not iso9660.read(path).hybrid:
        raise UsageError(
            f"{path} does not start from a stick",
            why="it has no partition table",
            fix="burn it onto a disc with another program",
        )
    _burn(path, device)


def _stick(device: str) -> Stick:
    """The stick, when it may be written and somebody can be asked about it."""
    from poclab import blockdevice

    stick = blockdevice.find(Path(device))
    context.check_terminal()
    return stick


def _burn(path: Path, device: str) -> None:
    from poclab import blockdevice

    stick = _stick(device)
    name = stick.path.name
    output.tell(f"everything on {stick} will be lost")
    if not context.insisted(f"type {name} to write {path} over it:", name, str(stick.path)):
        output.tell("nothing was written")
        raise typer.Exit(1)
    digest = blockdevice.write(path, stick)
    if not context.options().quiet:
        output.tell(f"{stick.path} holds {path}: read back, {digest}")


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
    file = hints.command(str(made.path), otherwise="FILE")
    output.tell(f"to a USB stick, which is erased: poclab image write {file} /dev/sdX, or by hand:")
    output.tell(f"  sudo dd if={file} of=/dev/sdX bs=4M status=progress oflag=direct conv=fsync")
    output.tell(f"or to a stick with Ventoy, beside others: cp {file} /media/VENTOY/")
