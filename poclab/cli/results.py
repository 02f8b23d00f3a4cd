"""What several commands print when they are done."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from poclab.cli import output, results, tables
from poclab.cli.context import options
from poclab.cli.output import Format

if TYPE_CHECKING:
    from poclab.labs.reset import Reset
    from poclab.virt.host import Host
if TYPE_CHECKING:
    from poclab.virt.host import Host


def show_vms(host: Host, paths: Collection[str], form: Format, ready: Collection[str] = ()) -> None:
    """Print the status of some VMs, by `LAB/VM`, unless asked to be quiet.

    Args:
        host: the host.
        paths: the VMs.
        form: how to print it.
        ready: those that were seen ready a moment ago.
    """
    from poclab.labs.status import status

    if options().quiet:
        return
    labs = frozenset(path.partition("/")[0] for path in paths)
    rows = status(host, labs, paths, ready) if paths else []
    output.listing(rows, tables.STATUS, form, lambda row: f"{row.lab}/{row.vm}")


def show_reset(host: Host, resets: list[Reset], form: Format | None) -> None:
    """Print the status of VMs that were reset, if in a form, and raise what went wrong."""
    if form is not None:
        # Of several VMs the first may have been ready minutes ago.
        ready = {item.path for item in resets if not item.error and len(resets) == 1}
        results.show_vms(host, {item.path for item in resets}, form, ready)
    errors = [item.error for item in resets if item.error]
    for error in errors[:-1]:
        output.show_error(error)
    if errors:
        raise errors[-1]
