"""Completion of labs, VMs, versions and marks on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from poclab.cli.context import host, options

if TYPE_CHECKING:
    pass


def complete_lab(incomplete: str) -> list[str]:
    """Names of lab files."""
    labs = Path(options().directory) / "labs"
    return [item.stem for item in sorted(labs.glob("*.yaml")) if item.stem.startswith(incomplete)]


def complete_image(incomplete: str) -> list[str]:
    """Names of image definitions."""
    found = (Path(options().directory) / "images").glob("*/image.yaml")
    return sorted(item.parent.name for item in found if item.parent.name.startswith(incomplete))


def complete_vm(incomplete: str) -> list[str]:
    """Names of VMs on the host."""
    try:
        with host() as found:
            records = [vm.record for vm in found.vms()]
    except Exception:  # completion never prints an error
        return []
    names = [record.name for record in records] + [record.path for record in records]
    return sorted({name for name in names if name.startswith(incomplete)})


def complete_target(incomplete: str) -> list[str]:
    """Names of VMs and labs on the host."""
    return sorted({*complete_vm(incomplete), *complete_up_lab(incomplete)})


def complete_version(incomplete: str) -> list[str]:
    """Tags of versions, and marks of labs."""
    from poclab.store.marks import Marks
    from poclab.store.versions import Store

    try:
        with host() as found:
            names = {item.ref.tag for item in Store(found.pool, found.uri).versions()}
            names |= {mark.name for mark in Marks.of(found.pool).marks}
    except Exception:  # completion never prints an error
        return []
    return sorted(name for name in names if name.startswith(incomplete))


def complete_mark(ctx: typer.Context, incomplete: str) -> list[str]:
    """Marks of the lab that was typed before."""
    from poclab.store.marks import Marks

    try:
        with host() as found:
            names = [mark.name for mark in Marks.of(found.pool, ctx.params.get("lab")).marks]
    except Exception:  # completion never prints an error
        return []
    return sorted(name for name in names if name.startswith(incomplete))


def complete_up_lab(incomplete: str) -> list[str]:
    """Names of labs on the host."""
    try:
        with host() as found:
            labs = {vm.record.lab for vm in found.vms()}
    except Exception:  # completion never prints an error
        return []
    return sorted(name for name in labs if name.startswith(incomplete))
