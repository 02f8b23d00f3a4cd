"""Options and arguments that several commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poclab.cli.completion import complete_up_lab, complete_vm
from poclab.cli.output import Format
from poclab.core.errors import UsageError
from poclab.core.units import parse_duration

if TYPE_CHECKING:
    from poclab.store.parked import Lifetime
if TYPE_CHECKING:
    pass


OutputOption = Annotated[
    Format,
    typer.Option("-o", "--output", envvar="POCLAB_OUTPUT", help="How to print the listing."),
]


VmsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[VM]...",
        help="VM or LAB/VM.",
        autocompletion=lambda incomplete: complete_vm(incomplete),
    ),
]


LabOption = Annotated[
    str | None,
    typer.Option(
        "--lab",
        metavar="LAB",
        help="The lab, for --all or bare VM names.",
        autocompletion=lambda incomplete: complete_up_lab(incomplete),
    ),
]


WarmOption = Annotated[
    bool | None,
    typer.Option(
        "--warm/--no-warm",
        help="Keep memory for warm resets, or boot in any case; left out: as the lab file says.",
    ),
]


YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]


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


def lifetime(keep_old: bool, expires: str | None) -> Lifetime:
    """What two options say of how long disks are kept.

    Raises:
        UsageError: they do not go together, or the text is not a duration.
    """
    from poclab.store.parked import NEVER, Keep

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
