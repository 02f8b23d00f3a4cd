"""The commands about installers: image iso, image write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poclab.cli import context, output, prompts
from poclab.core import hints
from poclab.core.errors import UsageError
from poclab.core.plaintext import shown
from poclab.core.units import format_size
from poclab.model.version import Ref

if TYPE_CHECKING:
    from poclab.builders.base import Output
    from poclab.disks.removable import Stick
    from poclab.images.installer import Iso


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
    from poclab.images.installer import InstallerRequest, make_iso
    from poclab.store.versions import Store

    name = Ref.parse(ref)
    if device is not None:
        _stick(device)  # before minutes are spent
    request = InstallerRequest(
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
        made = make_iso(Store(host.pool, host.uri), name, request)
    _show(made)
    if device is not None:
        _burn(made.path, device)


def write(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An ISO.")],
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="A USB stick, as /dev/sdX.")],
) -> None:
    """Write an ISO onto a USB stick, and read it back."""
    from poclab.disks import iso9660

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
    from poclab.disks import removable

    stick = removable.find(Path(device))
    prompts.check_terminal()
    return stick


def _burn(path: Path, device: str) -> None:
    from poclab.disks import removable

    stick = _stick(device)
    name = stick.path.name
    output.tell(f"everything on {stick} will be lost")
    if not prompts.insisted(f"type {name} to write {path} over it:", name, str(stick.path)):
        output.tell("nothing was written")
        raise typer.Exit(1)
    digest = removable.write(path, stick)
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
