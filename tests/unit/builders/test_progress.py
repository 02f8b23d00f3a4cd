"""What the disk builders print: progress and errors."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from poclab.builders import errors, progress
from poclab.builders.progress import Lines, Progress
from poclab.core import events

Told = list[tuple[str, object, object]]


def listen(told: Told) -> events.Listener:
    return lambda event: told.append((event.text, event.data["done"], event.data["total"]))


def test_lines_of_the_debug_form() -> None:
    told: Told = []
    lines = Lines()
    with events.listening(listen(told)):
        for text in (
            "Start progressbar",
            "pulse: Manifest generation step",
            "[1 / 4] Pipeline build",
            "  [3 / 9] org.osbuild.copy",
            "msg: copying",
            "",
            "error: first",
            "what followed the first",
            "error: last: no space left on device",
            "Stop progressbar",
        ):
            lines.see(text)
    assert told == [
        ("Manifest generation step", None, None),
        ("Pipeline build", 1.0, 4.0),
        ("org.osbuild.copy", 1.0, 4.0),
        ("copying", 1.0, 4.0),
    ]
    assert lines.said == "last: no space left on device"


def test_lines_without_marks_are_progress_of_bootc() -> None:
    told: Told = []
    lines = Lines(plain=True)
    with events.listening(listen(told)):
        lines.see("Installing image: docker://localhost/x")
    assert told == [("Installing image: docker://localhost/x", None, None)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("error: it broke", "it broke"),
        # bootc-image-builder's last line goes through Go's log package.
        ("2026/11/25 19:53:12 error: cannot build manifest: x", "cannot build manifest: x"),
        ("Error: initializing source", "initializing source"),
    ],
)
def test_the_builders_own_words(line: str, said: str) -> None:
    lines = Lines()
    lines.see("pulse: x")
    lines.see(line)
    assert lines.said == said


def test_what_osbuild_says_after_its_error() -> None:
    lines = Lines()
    for text in (
        "error: error running osbuild: exit status 1",
        "BuildLog:",
        "org.osbuild.selinux: setfiles: not found",
        "Output:",
        "Failed",
    ):
        lines.see(text)
    error = errors.explained(lines, 1, Path("/l"), "img")
    assert "setfiles: not found" in error.why
    assert "SELinux" in error.why
    assert "builder: bootc" in error.fix


def test_a_step_without_a_name_keeps_the_last_one() -> None:
    told: Told = []
    lines = Lines()
    with events.listening(listen(told)):
        for text in (
            "pulse: Image building step",
            "[0 / 4] ",
            "[1 / 4] Pipeline build",
            "  [0 / 2] ",
            "  [1 / 2] Stage org.osbuild.selinux",
            "[2 / 4]",
        ):
            lines.see(text)
        Progress().tell("")
    assert told == [
        ("Image building step", None, None),
        ("Image building step", 0.0, 4.0),
        ("Pipeline build", 1.0, 4.0),
        ("Pipeline build", 1.0, 4.0),
        ("Stage org.osbuild.selinux", 1.0, 4.0),
        ("Stage org.osbuild.selinux", 2.0, 4.0),
        ("", None, None),
    ]


def test_the_progress_of_a_whole_real_run() -> None:
    told: Told = []
    lines = Lines()
    text = Path(__file__).parents[2] / "support/builder_texts/ib-failed-stage.txt"
    with events.listening(listen(told)):
        for line in text.read_text().splitlines():
            lines.see(line)
    assert all(name for name, *_ in told)
    # What follows the error is no progress.
    assert told[-1] == ("Stage org.osbuild.bootc.install-to-filesystem", 2.0, 4.0)


def test_time_stands_for_progress_where_there_is_none() -> None:
    told: Told = []
    with events.listening(listen(told)):
        began = Progress(expected=1000)
        began.tell("copying")
        began.tell("step", 1, 4)
        Progress().tell("copying")
        late = Progress(expected=1e-9)
        time.sleep(0.001)
        late.tell("copying")
    (_, done, total), *others = told
    assert isinstance(done, float)
    assert done < 10
    assert total == 1000
    assert others == [("step", 1, 4), ("copying", None, None), ("copying", None, None)]


# --- image-builder's file ---------------------------------------------------------------


def write(path: Path, data: object) -> None:
    """Replace a file as a whole, as image-builder does."""
    temporary = path.with_suffix(".progress.1")
    temporary.write_text(data if isinstance(data, str) else json.dumps(data))
    temporary.rename(path)


def test_a_progress_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.progress"
    assert progress.read(path) is None
    write(path, {"message": "Pipeline build", "done": 1, "total": 4})
    assert progress.read(path) == ("Pipeline build", 1, 4)
    inner = {"message": "org.osbuild.copy", "done": 3, "total": 9}
    write(path, {"message": "Pipeline build", "done": 1, "total": 4, "subprogress": inner})
    assert progress.read(path) == ("org.osbuild.copy", 1, 4)


@pytest.mark.parametrize("data", ["", "{", "[]", "1", {"done": 1}, {"done": "x", "total": None}])
def test_a_progress_file_that_says_nothing(tmp_path: Path, data: object) -> None:
    write(tmp_path / "f", data)
    assert progress.read(tmp_path / "f") is None


def test_a_progress_file_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_POLL", 0.01)
    told: Told = []
    path = tmp_path / "disk.progress"
    with events.listening(listen(told)), progress.watching(path, Progress()):
        for done in (1, 2):
            write(path, {"message": "Pipeline", "done": done, "total": 2})
            limit = time.monotonic() + 10
            while len(told) < done and time.monotonic() < limit:
                time.sleep(0.005)
    assert told == [("Pipeline", 1, 2), ("Pipeline", 2, 2)]


def test_what_a_listener_raises_while_a_file_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_POLL", 0.01)
    path = tmp_path / "disk.progress"
    seen: list[str] = []

    def stop(event: events.Event) -> None:
        seen.append(event.text)
        raise KeyboardInterrupt

    def watched() -> None:
        with progress.watching(path, Progress()):
            limit = time.monotonic() + 10
            while not seen and time.monotonic() < limit:
                time.sleep(0.005)

    write(path, {"message": "Pipeline", "done": 1, "total": 2})
    with pytest.raises(KeyboardInterrupt), events.listening(stop):
        watched()
    assert seen == ["Pipeline"]


# --- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("this command must be run in rootful (not rootless) podman", "as root"),
        ("this command requires a privileged container", "privileged"),
        ("could not access container storage, did you forget -v /var/lib/...", "overlay"),
        ("failed to inspect the image: x, bib no longer pulls images", "image ls"),
        ("image x is not a bootc image (missing label)", "LABEL containers.bootc=1"),
        ("failed to initialize bootc distro: missing required info: DefaultRootFs", "rootfs:"),
        ("missing VERSION_ID in os-release", "VERSION_ID"),
        ("localhost/x does not resolve to an image ID", "overlay"),
        ("write /store/x: no space left on device", "make room"),
        ("cannot read config: unknown keys found: [x]", "blueprint"),
        ("unknown flag: --chown", "builder_args"),
        ("Command '['setfiles', '-F']' returned 1", "direct for Debian"),
        ("Installing to disk: No root filesystem specified", "rootfs: ext4"),
        ("failed to set up loop device: No such device", "modprobe loop"),
        ("executable file `bootc` not found in $PATH", "bootc install to-disk"),
        ("something nobody has seen", "see the log"),
    ],
)
def test_error_texts(text: str, fix: str) -> None:
    lines = Lines()
    lines.see(f"error: {text}")
    error = errors.explained(lines, 1, Path("/l/build.log"), "img")
    assert fix in error.fix
    assert text in error.why
    assert "/l/build.log" in error.what


def test_podmans_own_failure_names_the_image() -> None:
    lines = Lines()
    lines.see("no such file")
    error = errors.explained(lines, 125, Path("/l"), "img:1")
    assert error.what == "podman could not run img:1 (log: /l)"
    assert error.why == "no such file"


def test_a_builder_that_says_nothing() -> None:
    error = errors.explained(Lines(), 7, Path("/l"), "img:1", "image-builder")
    assert error.what == "image-builder failed (log: /l)"
    assert error.why == "exit status 7"
