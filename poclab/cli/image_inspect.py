"""Commands about what is stored: image show, diff, verify, protect, unprotect."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from poclab.cli import context, output, tables
from poclab.cli.options import OutputOption
from poclab.cli.output import Format
from poclab.cli.tables import Column
from poclab.model.names import check_name
from poclab.model.version import Ref

if TYPE_CHECKING:
    from poclab.images.show import VersionRow

_PAIRS = (Column("FIELD", "field"), Column("VALUE", "value"))
_CHANGES = (
    Column("KIND", "kind"),
    Column("NAME", "name"),
    Column("CHANGE", "change"),
    Column("OLD", "old", lambda value: _amount(value)),
    Column("NEW", "new", lambda value: _amount(value)),
)
_RESULTS = (
    Column("NAME", "name"),
    Column("TAG", "tag"),
    Column("RESULT", "result"),
    Column("PROBLEM", "problem"),
    Column("FIX", "fix"),
)
_Versions = Annotated[list[str], typer.Argument(metavar="NAME:TAG...", help="Versions.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `poclab image`."""
    app.command()(show)
    app.command()(diff)
    app.command()(verify)
    app.command()(protect)
    app.command()(unprotect)


def show(
    ref: Annotated[str, typer.Argument(metavar="NAME:TAG", help="A version.")],
    form: OutputOption = Format.TABLE,
) -> None:
    """Print all that is known of a version."""
    from poclab.images.show import show as look

    name = Ref.parse(ref)
    with context.host() as host:
        row = look(host, name)
    if form is Format.TABLE:
        output.listing(_pairs(row), _PAIRS, form, lambda pair: pair.field)
    else:
        output.listing([row], (), form, lambda one: f"{one.name}:{one.tag}")


@dataclass(frozen=True)
class _Pair:
    field: str
    value: str


def _pairs(row: VersionRow) -> list[_Pair]:
    """The fields as lines of a table; what has several values gets a line for each."""
    pairs: list[_Pair] = []
    for item in fields(row):
        value = getattr(row, item.name)
        if isinstance(value, dict):
            values = [f"{key}={text}" for key, text in sorted(value.items())]
        elif isinstance(value, list):
            values = value
        elif item.name in ("size", "virtual_size"):
            values = [tables.size(value)]
        else:
            values = [{True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)]
        names = [item.name] + [""] * len(values)
        pairs += [_Pair(name, text) for name, text in zip(names, values or ["-"], strict=False)]
    return pairs


def diff(
    old: Annotated[str, typer.Argument(metavar="NAME:TAG", help="A version.")],
    new: Annotated[str, typer.Argument(metavar="NAME:TAG", help="The one it is compared with.")],
    form: OutputOption = Format.TABLE,
) -> None:
    """Print what changed from one version to another: packages and files, where they are known."""
    from poclab.images.diff import diff as compare

    refs = Ref.parse(old), Ref.parse(new)
    with context.host() as host:
        rows = compare(host, *refs)
    output.listing(rows, _CHANGES, form, lambda row: row.name, empty="they are the same")


def _amount(value: str | int) -> str:
    return tables.size(value) if isinstance(value, int) else value


def verify(
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME[:TAG]]...", help="Versions, or images for all of theirs."),
    ] = None,
    form: OutputOption = Format.TABLE,
) -> None:
    """Read versions and see that they are what was stored; exits with 1 when one is not."""
    from poclab.images.verify import OK
    from poclab.images.verify import verify as read

    wanted = [Ref.parse(x) if ":" in x else check_name("image", x) for x in refs or ()]
    with context.host() as host:
        rows = read(host, wanted)
    output.listing(
        rows,
        _RESULTS,
        form,
        lambda row: f"{row.name}:{row.tag}",
        empty="no version is stored on this host",
    )
    if any(row.result != OK for row in rows):
        raise typer.Exit(1)


def protect(refs: _Versions) -> None:
    """Have `image rm` refuse versions."""
    _protect(refs, protected=True)


def unprotect(refs: _Versions) -> None:
    """Let versions be removed again."""
    _protect(refs, protected=False)


def _protect(refs: list[str], *, protected: bool) -> None:
    from poclab.images.protection import protect as change

    found = [Ref.parse(text) for text in dict.fromkeys(refs)]
    with context.host() as host:
        changed = {version.ref for version in change(host, found, protected=protected)}
        host.settle()
    for ref in found if not context.options().quiet else ():
        state = "protected" if protected else "not protected"
        output.tell(f"{ref} is {state}{'' if ref in changed else ' already'}")
