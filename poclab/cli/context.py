"""What every command shares: the options before the command, the host, questions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from poclab.cli import output
from poclab.core import events
from poclab.core.errors import UsageError
from poclab.core.plaintext import shown
from poclab.model.names import check_name

if TYPE_CHECKING:
    from poclab.model.lab import Lab
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
