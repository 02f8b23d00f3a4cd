"""Commands about VMs: reset, rollback, history, ssh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poclab.cli import completion, context, output, prompts, results, tables
from poclab.cli.options import (
    ExpiresOption,
    KeepOldOption,
    LabOption,
    OutputOption,
    WarmOption,
    YesOption,
    lifetime,
)
from poclab.cli.output import Format
from poclab.cli.results import show_reset
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import plain
from poclab.core.units import format_size
from poclab.model.version import Ref

if TYPE_CHECKING:
    from poclab.labs.selectors import Target

VmArgument = Annotated[
    str,
    typer.Argument(metavar="VM", help="VM or LAB/VM.", autocompletion=completion.complete_vm),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(reset)
    app.command()(rollback)
    app.command()(commit)
    app.command()(history)
    app.command(context_settings={"ignore_unknown_options": True})(ssh)


def reset(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="VM, LAB/VM or LAB.",
            autocompletion=completion.complete_target,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TAG|MARK",
            help="The version, or a mark of the lab; left out: the one it runs, clean.",
            autocompletion=completion.complete_version,
        ),
    ] = None,
    lab: LabOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every VM: of the lab, or of all labs.")
    ] = False,
    yes: YesOption = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until they are ready.")
    ] = True,
    warm: WarmOption = None,
    keep_old: KeepOldOption = False,
    expires: ExpiresOption = None,
    form: OutputOption = Format.TABLE,
) -> None:
    """Put VMs, or whole labs, on clean disks of a version; data disks with keep: true stay."""
    from poclab.labs import reset_targets
    from poclab.labs.reset import reset as put
    from poclab.labs.selectors import find_lab, find_targets, whole
    from poclab.store.marks import Marks

    keep = lifetime(keep_old, expires)
    if every == bool(names):
        raise UsageError("name VMs or labs, or say --all")
    with context.host() as host:
        choose = (
            reset_targets.same if to is None else reset_targets.to(to, lambda: Marks.of(host.pool))
        )
        found = host.vms()
        if every:
            targets = whole(found if lab is None else find_lab(found, lab))
        else:
            targets = find_targets(found, names or (), lab)
        if not targets:
            raise PoclabError("there is nothing to reset", why="no lab is up on this host")
        if every and lab is None and not prompts.confirmed(_question(targets), yes=yes):
            output.tell("nothing was done")
            raise typer.Exit(1)
        resets = put(host, targets, choose, wait=wait, keep_warm=warm, keep_old=keep)
        show_reset(host, resets, form if wait else None)


def _question(targets: list[Target]) -> str:
    labs = ", ".join(sorted({each.vm.record.lab for each in targets}))
    return f"Reset {len(targets)} VMs of {labs}?"


def rollback(
    vm: VmArgument,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is ready.")] = True,
    warm: WarmOption = None,
    keep_old: KeepOldOption = False,
    expires: ExpiresOption = None,
    form: OutputOption = Format.TABLE,
) -> None:
    """Put a VM on a clean disk of the version that it ran before, or in place if switched so."""
    from poclab.labs.reset import rollback as put_back
    from poclab.labs.selectors import find_vm
    from poclab.labs.switch import rollback as boot_back

    keep = lifetime(keep_old, expires)
    with context.host() as host:
        target = find_vm(host.vms(), vm)
        if target.record.in_place:
            if not wait or warm is not None:
                raise UsageError(
                    f"{target.record.path} was switched in place, and goes back in place",
                    why="that is a reboot, which is waited for to see what it boots",
                    fix="leave --warm, --no-warm and --no-wait out",
                )
            done = boot_back(host, target)
            results.show_vms(host, {done.path}, form)
            return
        resets = put_back(host, target, wait=wait, keep_warm=warm, keep_old=keep)
        show_reset(host, resets, form if wait else None)


def commit(
    vm: VmArgument,
    ref: Annotated[str, typer.Option("--as", metavar="NAME:TAG", help="The version to make.")],
    message: Annotated[
        str, typer.Option("--message", metavar="TEXT", help="A line to keep with the version.")
    ] = "",
    shutdown: Annotated[
        bool,
        typer.Option("--shutdown", help="Shut it down first if it runs; start it afterwards."),
    ] = False,
    flatten: Annotated[
        bool, typer.Option("--flatten", help="Make a disk that stands alone, not a thin layer.")
    ] = False,
    quiesce: Annotated[
        bool,
        typer.Option(
            "--quiesce/--no-quiesce",
            help="Have the guest agent write everything out first (of a VM that runs on).",
        ),
    ] = True,
    yes: YesOption = False,
) -> None:
    """Make a version of a VM's system disk, and put the VM on it."""
    from poclab.labs.commit import CommitRequest
    from poclab.labs.commit import commit as make
    from poclab.labs.selectors import find_vm

    request = CommitRequest(Ref.parse(ref), plain(message), shutdown, flatten, quiesce)
    with context.host() as host:
        target = find_vm(host.vms(), vm)
        path = target.record.path
        stops = target.active and shutdown
        if stops and not prompts.confirmed(f"Shut {path} down for it?", yes=yes):
            output.tell("nothing was done")
            raise typer.Exit(1)
        version = make(host, target, request)
    if not context.options().quiet:
        layer = f", a layer on {version.origin.inputs['version']}" if version.parents else ""
        output.tell(f"committed {path} as {version.ref}, {format_size(version.size)}{layer}")


def history(vm: VmArgument, form: OutputOption = Format.TABLE) -> None:
    """List what a VM ran, and since when."""
    from poclab.labs.selectors import find_vm
    from poclab.labs.status import history_rows

    with context.host() as host:
        rows = history_rows(find_vm(host.vms(), vm))
    output.listing(rows, tables.HISTORY, form, lambda row: row.version)


def ssh(
    vm: VmArgument,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="Left out: a shell.")
    ] = None,
) -> None:
    """Log in to a VM, or run a command in it; its exit status is passed on."""
    from poclab.core.process import runner
    from poclab.guest.readiness import target
    from poclab.guest.ssh import argv
    from poclab.labs.lab_host import LabHost
    from poclab.labs.selectors import find_vm

    with context.host() as host:
        found = find_vm(host.vms(), vm)
        if not found.active:
            lab = found.record.lab
            raise PoclabError(
                f"{found.record.path} does not run",
                why=f"it is {found.state}",
                fix=f"`poclab up {lab}` starts it",
            )
        files = LabHost(host, found.record.lab).files
        words = argv(target(host, found.running, files), command or ())
    runner().exec(words)
