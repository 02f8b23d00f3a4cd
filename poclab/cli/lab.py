"""Commands about labs: up, plan, down, status, validate, schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poclab.cli import completion, context, output, prompts, tables
from poclab.cli.options import OutputOption, WarmOption, YesOption
from poclab.cli.output import Format
from poclab.core.errors import PoclabError, Problems
from poclab.model.names import check_name

if TYPE_CHECKING:
    from poclab.labs.down import Downfall
    from poclab.labs.status import VmRow
    from poclab.planning.plan import Plan

LabArgument = Annotated[
    str,
    typer.Argument(
        metavar="LAB",
        help="A name (labs/NAME.yaml) or file.",
        autocompletion=completion.complete_lab,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(up)
    app.command()(plan)
    app.command()(down)
    app.command()(status)
    app.command()(validate)
    app.command()(schema)


@dataclass(frozen=True)
class ActionRow:
    """A line of a plan; the fields are the JSON's keys."""

    action: str
    target: str
    reason: str
    reboots: bool
    discards: str

    @property
    def notes(self) -> str:
        """What the user should know before it is done."""
        return ", ".join(
            [
                *(["reboots"] if self.reboots else []),
                *([f"discards {self.discards}"] if self.discards else []),
            ]
        )


def _rows(found: Plan) -> list[ActionRow]:
    return [
        ActionRow(str(item.verb), item.target, "; ".join(item.reasons), item.reboots, item.discards)
        for item in found.actions
    ]


def _show_plan(found: Plan, form: Format) -> None:
    for line in found.notes:
        output.tell(f"note: {line}")
    output.listing(
        _rows(found),
        tables.ACTIONS,
        form,
        lambda row: row.target,
        empty=f"{found.lab} is as its file asks for: nothing to do",
    )


def up(
    lab: LabArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, with reasons.")
    ] = False,
    warm: WarmOption = None,
    yes: YesOption = False,
    form: OutputOption = Format.TABLE,
) -> None:
    """Bring a lab up, or up to date with its file."""
    from poclab.labs.status import status as rows
    from poclab.labs.up import up as bring_up

    wanted = context.load_lab(lab)

    def confirm(found: Plan) -> bool:
        if not context.options().quiet:
            for line in found.notes:
                output.tell(f"note: {line}")
            for action in found.actions:
                output.tell(f"  {action}")
        risky = any(action.reboots or action.discards for action in found.actions)
        return not risky or prompts.confirmed(f"Change {found.lab}?", yes=yes)

    with context.host() as host:
        outcome = bring_up(host, wanted, dry_run=dry_run, keep_warm=warm, confirm=confirm)
        if dry_run:
            _show_plan(outcome.plan, form)
            return
        if outcome.plan.actions and not outcome.applied:
            output.tell("nothing was done")
            raise typer.Exit(1)
        if not outcome.plan.actions and not outcome.failed and not context.options().quiet:
            output.tell(f"{wanted.name} is as its file asks for: nothing to do")
        _show_status(rows(host, frozenset({wanted.name})), form)
    _fail(wanted.name, outcome.failed)


def _fail(lab: str, failed: Mapping[str, PoclabError]) -> None:
    for error in failed.values():
        output.show_error(error)
    if failed:
        names = ", ".join(sorted(failed))
        raise PoclabError(
            f"lab {lab} is not fully up: {names}", fix=f"`poclab up {lab}` goes on from here"
        )


def plan(
    lab: LabArgument,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 3 when there is something to do.")
    ] = False,
    form: OutputOption = Format.TABLE,
) -> None:
    """Print what `up` would do, with reasons."""
    from poclab.labs.up import up as bring_up

    wanted = context.load_lab(lab)
    with context.host() as host:
        outcome = bring_up(host, wanted, dry_run=True)
    _show_plan(outcome.plan, form)
    if exit_code and outcome.plan.actions:
        raise typer.Exit(3)


def down(
    lab: Annotated[
        str,
        typer.Argument(
            metavar="LAB",
            help="The lab's name; its file is not needed.",
            autocompletion=completion.complete_up_lab,
        ),
    ],
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Remove data disks with keep: true as well.")
    ] = False,
    parked: Annotated[
        bool, typer.Option("--parked", help="Remove disks that `reset --keep-old` kept as well.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Remove a lab's VMs, their disks and its networks; nothing else."""
    from poclab.labs.down import down as take_down

    def confirm(found: Downfall) -> bool:
        parts = [f"VMs {', '.join(found.vms)}"] if found.vms else []
        parts += [f"networks {', '.join(found.networks)}"] if found.networks else []
        if volumes and found.kept:
            parts.append(f"data disks {', '.join(_disk_name(name) for name in found.kept)}")
        if parked and found.parked:
            parts.append(f"parked disks {', '.join(found.parked)}")
        stay = "" if parked or not found.parked else f" (stays: {', '.join(found.parked)})"
        return prompts.confirmed(f"Remove {'; '.join(parts)} of {lab}{stay}?", yes=yes)

    check_name("lab", lab)
    with context.host() as host:
        found = take_down(host, lab, volumes=volumes, parked=parked, confirm=confirm)
    if found is None:
        output.tell("nothing was removed")
        raise typer.Exit(1)
    if context.options().quiet:
        return
    gone = not found.empty or (volumes and found.kept) or (parked and found.parked)
    output.tell(f"{lab} is down" if gone else f"{lab} was not up: nothing to do")
    if found.kept and not volumes:
        names = ", ".join(_disk_name(name) for name in found.kept)
        output.tell(f"kept: data disk {names} (`poclab down {lab} --volumes` removes it)")
    if found.parked and not parked:
        names = ", ".join(found.parked)
        output.tell(f"kept: parked disk {names} (`poclab down {lab} --parked` removes it)")


def _disk_name(volume: str) -> str:
    from poclab.model.volumes import VolumeName

    name = VolumeName.parse(volume)
    return f"{name.vm}/{name.disk}"


def status(
    labs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[LAB]...", help="Only these labs.", autocompletion=completion.complete_up_lab
        ),
    ] = None,
    form: OutputOption = Format.TABLE,
) -> None:
    """List the VMs of all labs on the host."""
    from poclab.labs.status import status as rows

    wanted = frozenset(check_name("lab", lab) for lab in labs or ())
    with context.host() as host:
        _show_status(rows(host, wanted), form, ", ".join(sorted(wanted)))


def _show_status(rows: list[VmRow], form: Format, labs: str = "") -> None:
    output.listing(
        rows,
        tables.STATUS,
        form,
        lambda row: f"{row.lab}/{row.vm}",
        empty=f"not up on this host: {labs}" if labs else "no lab is up on this host",
    )


def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Lab files.")],
) -> None:
    """Check lab files without a host; all faults of all files in one go."""
    from poclab.schema.lab import load_lab

    faults: list[PoclabError] = []
    for path in files:
        try:
            found = load_lab(Path(path))
        except PoclabError as error:
            faults.append(error)
        else:
            if not context.options().quiet:
                output.tell(f"{path}: lab {found.name}, {len(found.vms)} VMs, no faults")
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = [line for error in faults for line in getattr(error, "problems", [str(error)])]
        raise Problems(f"{len(faults)} of {len(files)} files have faults", lines)


def schema(
    kind: Annotated[str, typer.Argument(help="lab or image.")] = "lab",
) -> None:
    """Print the JSON Schema of lab files (or image files) for editors."""
    import json

    from poclab.core.errors import UsageError
    from poclab.schema.image import image_json_schema
    from poclab.schema.lab import json_schema

    makers = {"lab": json_schema, "image": image_json_schema}
    if kind not in makers:
        raise UsageError(f"there is no schema {kind!r}", fix="choose lab or image")
    output.say(json.dumps(makers[kind](), indent=2))
