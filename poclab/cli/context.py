"""What every command shares: the options before the command, the host, questions."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poclab import events, output
from poclab.errors import UsageError
from poclab.names import check_name, shown
from poclab.output import Format

if TYPE_CHECKING:
    from poclab.model import Lab
    from poclab.virt.host import Host


class Accel(StrEnum):
    """How guests run."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class Options:
    """The options before the command."""

    connect: str | None = None
    accel: str = "auto"
    directory: str = "."
    verbose: bool = False
    quiet: bool = False


_options = Options()
_reporter: output.Reporter | None = None

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


def options() -> Options:
    """The options in force."""
    return _options


def set_options(given: Options) -> None:
    """Put the options in force."""
    global _options, _reporter
    _options = given
    if _reporter is not None:
        _reporter.end()
    _reporter = output.Reporter(verbose=given.verbose, quiet=given.quiet)


def end_progress() -> None:
    """End what progress is shown, for a question; later progress is shown again."""
    if _reporter is not None:
        _reporter.close()


@contextmanager
def reporting() -> Iterator[None]:
    """Have events reported while the program runs."""

    def listener(event: events.Event) -> None:
        if _reporter is not None:
            _reporter(event)

    with events.listening(listener):
        try:
            yield
        finally:
            if _reporter is not None:
                _reporter.end()


@contextmanager
def host() -> Iterator[Host]:
    """The host that the options name."""
    from poclab.virt.host import connect

    with connect(options().connect, options().accel) as found:
        yield found


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask where somebody can answer; a script that says nothing means yes."""
    if yes or not output.interactive():
        return True
    end_progress()
    return output.ask(question)


def check_terminal() -> None:
    """See that somebody can answer a question that no option answers.

    Raises:
        UsageError: nobody can.
    """
    if not output.interactive():
        raise UsageError(
            "that wants an answer on a terminal",
            why="standard input or standard error is none",
            fix="run it in a terminal, or write the ISO by hand with dd",
        )


def insisted(question: str, *words: str) -> bool:
    """Have one of some words typed; no option and no script can answer instead.

    Raises:
        UsageError: nobody can answer.
    """
    check_terminal()
    end_progress()
    return output.typed(question) in words


def lab_file(text: str) -> Path:
    """The lab file that `up` was given: a name means labs/NAME.yaml.

    Raises:
        UsageError: there is no such file.
    """
    path = Path(text)
    if "/" in text or path.suffix in (".yaml", ".yml"):
        return path
    check_name("lab", text)
    labs = Path(options().directory) / "labs"
    found = labs / f"{text}.yaml"
    if found.is_file():
        return found
    there = sorted(item.stem for item in labs.glob("*.yaml"))
    raise UsageError(
        f"there is no lab {shown(text)}",
        why=f"{found} is not there; labs/ has {', '.join(there) or 'no lab file'}",
        fix="go to the directory that has labs/, or name it with -C, or give the file's path",
    )


def image_directory(text: str) -> Path:
    """The directory that `image build` was given: a name means images/NAME.

    Raises:
        UsageError: there is no such directory.
    """
    if "/" in text:
        return Path(text)
    check_name("image", text)
    images = Path(options().directory) / "images"
    found = images / text
    if (found / "image.yaml").is_file():
        return found
    there = sorted(item.parent.name for item in images.glob("*/image.yaml"))
    raise UsageError(
        f"there is no image definition {shown(text)}",
        why=f"{found}/image.yaml is not there; images/ has {', '.join(there) or 'none'}",
        fix="go to the directory that has images/, or name it with -C, or give a path",
    )


def load_lab(text: str) -> Lab:
    """Read the lab file that `up` was given."""
    from poclab.schema.lab import load_lab as load

    return load(lab_file(text))


# --- completion ---------------------------------------------------------------------------


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
    from poclab.marks import Marks
    from poclab.store import Store

    try:
        with host() as found:
            names = {item.ref.tag for item in Store(found.pool, found.uri).versions()}
            names |= {mark.name for mark in Marks.of(found.pool).marks}
    except Exception:  # completion never prints an error
        return []
    return sorted(name for name in names if name.startswith(incomplete))


def complete_mark(ctx: typer.Context, incomplete: str) -> list[str]:
    """Marks of the lab that was typed before."""
    from poclab.marks import Marks

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


def show_vms(host: Host, paths: Collection[str], form: Format, ready: Collection[str] = ()) -> None:
    """Print the status of some VMs, by `LAB/VM`, unless asked to be quiet.

    Args:
        host: the host.
        paths: the VMs.
        form: how to print it.
        ready: those that were seen ready a moment ago.
    """
    from poclab.status import status

    if options().quiet:
        return
    labs = frozenset(path.partition("/")[0] for path in paths)
    rows = status(host, labs, paths, ready) if paths else []
    output.listing(rows, output.STATUS, form, lambda row: f"{row.lab}/{row.vm}")
