"""The program: options before the command, the commands, and the only place for exit codes."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from poclab import __version__
from poclab.cli import (
    context,
    disk_usage,
    doctor,
    image,
    image_inspect,
    installer,
    lab,
    marks,
    output,
    parked,
    switch,
    vm,
    warm,
)
from poclab.core import files, interrupts, process_groups
from poclab.core.errors import PoclabError

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    name="poclab",
    help="Labs of virtual machines on versioned images: up, reset to a version, down.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
lab.register(app)
vm.register(app)
marks.register(app)
switch.register(app)
image_inspect.register(image.app)
installer.register(image.app)
app.add_typer(image.app, name="image")
disk_usage.register(app)
app.add_typer(warm.app, name="warm")
parked.register(app)
app.add_typer(parked.app, name="parked")
doctor.register(app)


def _version(value: bool) -> None:
    if value:
        output.say(f"poclab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    connect: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--connect",
            metavar="URI",
            envvar="POCLAB_CONNECT",
            help="The libvirt host; else LIBVIRT_DEFAULT_URI, else libvirt's choice.",
        ),
    ] = None,
    accel: Annotated[
        context.Accel,
        typer.Option("--accel", envvar="POCLAB_ACCEL", help="KVM or emulation (TCG)."),
    ] = context.Accel.AUTO,
    directory: Annotated[
        str,
        typer.Option(
            "-C",
            "--directory",
            metavar="DIR",
            envvar="POCLAB_DIRECTORY",
            help="Where labs/ and images/ are.",
        ),
    ] = ".",
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", envvar="POCLAB_VERBOSE", help="Say every step.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "-q", "--quiet", envvar="POCLAB_QUIET", help="Print no notes and no progress."
        ),
    ] = False,
    _show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Labs of virtual machines on versioned images: up, reset to a version, down."""
    context.set_options(context.Options(connect or None, accel.value, directory, verbose, quiet))


def run() -> NoReturn:
    """Run the program and exit: 0 done, 1 failed, 2 usage or lab file, 130 interrupted."""
    _open_streams()
    files.write_privately()
    output.accept_any_text()
    interrupts.install()
    try:
        try:
            code = _run()
        except KeyboardInterrupt:
            interrupts.settle()
            code = _INTERRUPTED
    except KeyboardInterrupt:  # another one before that was settled
        interrupts.settle()
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        process_groups.end_all()
        with suppress(OSError):  # the terminal may be gone
            output.tell("interrupted: the same command again goes on from here")
    with suppress(OSError):
        sys.stdout.flush()
    # What hangs in C code would keep the interpreter from ending, and so might what threads were
    # at when a second signal came in the middle of cleaning up.
    if interrupts.left_behind() or interrupts.heard():
        os._exit(code)
    sys.exit(code)


def _open_streams() -> None:
    """Open /dev/null where a stream was closed (`>&-`): Python has None then.

    Before anything else is opened, which would get the number: what C code prints as an error
    would go into a disk or a lock.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _run() -> int:
    try:
        with context.reporting():
            app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer's own end of a KeyboardInterrupt, without a word
            raise KeyboardInterrupt from None
        return end.code if isinstance(end.code, int) else 1
    except PoclabError as error:
        return _failed(error, error)
    except BrokenPipeError:
        # The reader of our output went away (`poclab status | head`).
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the flush at exit
        return 141
    except OSError as error:
        return _failed(error, _of_the_system(error))
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return _failed(
            error, PoclabError("poclab failed", why=why, fix="run it with -v and report it")
        )
    return 0


def _failed(error: Exception, told: PoclabError) -> int:
    """Tell the user of an error, with -v where it comes from; gives the exit status."""
    if context.options().verbose:
        import traceback  # 4 ms of every start

        output.tell("".join(traceback.format_exception(error)).rstrip())
    else:
        output.show_error(told)
    return told.exit_code


def _of_the_system(error: OSError) -> PoclabError:
    """What the system refused, when no adapter had better words for it."""
    why = error.strerror or str(error)
    if error.filename:
        why = f"{error.filename}: {why}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PoclabError(
            "the disk is full",
            why=why,
            fix="make room, then run the same command again (`poclab doctor` checks the pool)",
        )
    return PoclabError(
        "poclab could not use a file", why=why, fix="`poclab doctor` checks the host"
    )
