"""What is printed: data to standard output, the rest to standard error."""

from __future__ import annotations

import io
import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import pytest
import yaml
from rich.progress import Progress

from poclab.cli import output, tables
from poclab.cli.output import Format, Reporter, listing
from poclab.cli.tables import Column
from poclab.core.errors import PoclabError, Problems
from poclab.core.events import Event
from poclab.images.catalog import ImageRow
from poclab.labs.status import HistoryRow, VmRow


@dataclass(frozen=True)
class Row:
    """A row of the tests' own."""

    name: str
    tag: str
    size: int


ROWS = [Row("shop", "1.10", 2048), Row("on", "007", 0), Row("[bold]x", "1e3", 5 * 1024**3)]
COLUMNS = (Column("NAME", "name"), Column("TAG", "tag"), Column("SIZE", "size", tables.size))


def show(form: Format, rows: list[Row] | None = None, empty: str = "") -> None:
    """Print the rows."""
    listing(ROWS if rows is None else rows, COLUMNS, form, lambda row: row.name, empty)


def test_a_table_leaves_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show(Format.TABLE)
    out, err = capsys.readouterr()
    assert [line.split(maxsplit=2) for line in out.splitlines()] == [
        ["NAME", "TAG", "SIZE"],
        ["shop", "1.10", "2 KiB"],
        ["on", "007", "0 B"],
        ["[bold]x", "1e3", "5 GiB"],
    ]
    assert err == ""


def test_json_is_a_list_of_flat_objects(capsys: pytest.CaptureFixture[str]) -> None:
    show(Format.JSON)
    assert json.loads(capsys.readouterr().out)[0] == {"name": "shop", "tag": "1.10", "size": 2048}


def test_yaml_reads_back_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    show(Format.YAML)
    found = yaml.safe_load(capsys.readouterr().out)
    assert found[1] == {"name": "on", "tag": "007", "size": 0}
    assert list(found[0]) == ["name", "tag", "size"]


def test_names_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    show(Format.NAME)
    assert capsys.readouterr().out == "shop\non\n[bold]x\n"


@pytest.mark.parametrize(
    ("form", "expected"),
    [(Format.TABLE, ""), (Format.JSON, "[]\n"), (Format.YAML, "[]\n"), (Format.NAME, "")],
)
def test_no_rows_are_no_data(
    form: Format, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show(form, [], "there is nothing")
    out, err = capsys.readouterr()
    assert out == expected
    assert err == ("there is nothing\n" if form is Format.TABLE else "")


@pytest.mark.parametrize(
    ("row", "columns", "keys"),
    [
        (
            VmRow(
                *("l", "v", "running", "a:1", "sha256:ab", "10.0.0.1", "yes", None),
                *("a:2", None, None, "file asks 2"),
            ),
            tables.STATUS,
            "lab vm state version tag_digest address ready uptime wanted stored_digest written"
            " drift in_place",
        ),
        (
            ImageRow("a", "1", "sha256:ab", "t", "built x", 1, None, "", False),
            tables.IMAGES,
            "name tag digest created origin size unique used_by protected",
        ),
        (
            HistoryRow("t", "l", "v", "reset", "a:1", "sha256:ab", "me", "warm", 0.9),
            tables.HISTORY,
            "time lab vm action version digest by start seconds",
        ),
    ],
    ids=["status", "image ls", "history"],
)
def test_the_keys_of_listings_are_a_promise(
    row: object, columns: tuple[Column, ...], keys: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listing([row], columns, Format.JSON, str)
    (found,) = json.loads(capsys.readouterr().out)
    assert list(found) == keys.split()
    # What a table shows is a field, or made of fields: two versions side by side.
    assert {column.key for column in columns} <= {*found, "runs"}
    listing([row], columns, Format.TABLE, str)
    assert len(capsys.readouterr().out.splitlines()) == 2


# Escape sequences (a colour, a cleared screen, a window's title), a return, a tab, marks that turn
# the direction of writing, and a byte that is not UTF-8, as file names bring it.
HOSTILE = "a\x1b[31mb\x1b[2J\x1b]0;title\x07\r\n\tc\u202ed\udcffe\x00"
PLAIN = "a?[31mb?[2J?]0;title? c?d?e?"


def test_a_table_shows_nothing_that_a_terminal_acts_on(capsys: pytest.CaptureFixture[str]) -> None:
    show(Format.TABLE, [Row(HOSTILE, HOSTILE, 1)])
    heading, row = capsys.readouterr().out.splitlines()
    assert row.split("  ") == [PLAIN, PLAIN, "1 B"]
    assert heading.startswith("NAME")
    show(Format.NAME, [Row(HOSTILE, "", 1)])
    assert capsys.readouterr().out == f"{PLAIN}\n"


def test_json_and_yaml_are_exact_and_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    show(Format.JSON, [Row(HOSTILE, "é", 1)])
    text = capsys.readouterr().out
    assert json.loads(text) == [{"name": HOSTILE, "tag": "é", "size": 1}]
    assert text.replace("\n", "").isprintable()
    assert text.isascii()
    show(Format.YAML, [Row(HOSTILE.replace("\udcff", ""), "é", 1)])
    text = capsys.readouterr().out
    assert yaml.safe_load(text)[0]["name"] == HOSTILE.replace("\udcff", "")
    assert text.replace("\n", "").isprintable()
    assert text.isascii()


def test_a_message_keeps_its_lines_and_loses_what_a_terminal_acts_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.show_error(PoclabError("x\x1b[1mx", why="a  b\rc", fix="d\u202e"))
    output.tell("  one\n  two\x07")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: x?[1mx", "why: a  b?c", "fix: d?", "  one", "  two?"]


def test_events_lose_what_a_terminal_acts_on() -> None:
    lines = reported(
        Event("note", "a\x1b[2Jb"),
        Event("progress", "c\x1b[2Jd"),
        Event("step", "e", {"file": "f\x1bg"}),
        verbose=True,
    )
    assert lines[0] == "a?[2Jb"
    assert all(line.isprintable() for line in lines)


def test_an_encoding_that_lacks_a_letter_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", stream)
    output.accept_any_text()
    show(Format.TABLE, [Row("é", "\N{SNOWMAN}", 1)])
    stream.flush()
    assert raw.getvalue().splitlines()[1].split() == [b"\\xe9", b"\\u2603", b"1", b"B"]


def test_a_version_in_place_is_shown_beside_that_of_the_disk() -> None:
    row = VmRow("l", "v", "running", "a:1", "d", "", "yes", None, "a:1", None, None, "", "a:3")
    assert row.runs == "a:1 -> 3 in place"


def test_an_unknown_uptime_is_a_dash() -> None:
    assert tables.seconds(None) == "-"
    assert tables.seconds(0) == "0.0s"
    assert tables.short_digest("sha256:" + "0123456789abcdef" * 4) == "0123456789ab"


def test_an_error_is_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_error(PoclabError("it broke", why="so it goes", fix="mend it"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: it broke\nwhy: so it goes\nfix: mend it\n"


def test_several_faults_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_error(Problems("2 faults", ["f:1:2: a", "f:3:4: b"]))
    assert capsys.readouterr().err.splitlines() == ["f:1:2: a", "f:3:4: b", "2 faults"]


# --- events -----------------------------------------------------------------------------------


def reported(*events: Event, **options: bool) -> list[str]:
    """What a reporter prints to a pipe."""
    reporter = Reporter(**options)
    stream = io.StringIO()
    reporter._err = stream
    for event in events:
        reporter(event)
    reporter.close()
    return stream.getvalue().splitlines()


EVENTS = (
    Event("step", "overlay", {"vm": "vm1"}),
    Event("note", "vm1: ready"),
    Event("warning", "no KVM"),
    Event("debug", "details"),
    Event("progress", "storing", {"done": 1, "total": 4}),
)


def test_a_pipe_gets_notes_warnings_and_progress() -> None:
    assert reported(*EVENTS) == ["vm1: ready", "warning: no KVM", "storing 25%"]


def test_quiet_leaves_warnings_only() -> None:
    assert reported(*EVENTS, quiet=True) == ["warning: no KVM"]


def test_verbose_says_every_step() -> None:
    lines = reported(*EVENTS, verbose=True)
    assert len(lines) == 5
    assert lines[0].endswith("step: overlay vm=vm1")
    assert lines[3].endswith("debug: details")


def test_progress_in_a_pipe_is_a_line_a_step_not_a_line_an_event() -> None:
    steps = [Event("progress", "storing", {"done": n, "total": 100}) for n in range(100)]
    assert reported(*steps, Event("progress", "checking")) == ["storing", "checking"]


def test_progress_says_how_long_it_takes_and_took_before() -> None:
    steps = [
        Event("progress", "copying", {"done": 1, "total": 4, "elapsed": 61.0, "expected": 240.0}),
        Event("progress", "booting", {"done": None, "total": None, "elapsed": 75.0}),
    ]
    assert reported(*steps) == ["copying 25% (1m01s of about 4m00s)", "booting (1m15s)"]


def test_the_bar_has_the_steps_name_and_the_estimate() -> None:
    reporter = Reporter()
    stream = io.StringIO()
    reporter._err, reporter._terminal = stream, True
    reporter(Event("progress", "STEP 1", {"done": 1, "total": 2}))
    first = reporter._bar
    data = {"done": 3, "total": 4, "elapsed": 1.0, "expected": 240.0}
    reporter(Event("progress", "copying", data))
    assert reporter._bar is not None
    # The time of the disk begins with the disk, not with the container image.
    assert reporter._bar is not first
    (task,) = reporter._bar[0].tasks
    assert (task.description, task.percentage) == ("copying", 75)
    assert task.fields["estimate"] == "of about 4m00s"
    reporter.close()


def test_threads_share_one_bar_which_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run side by side (`schedule`): each opened a bar, and all but one stayed."""
    opened: list[Progress] = []
    ready = threading.Barrier(16)

    class Counted(Progress):
        def start(self) -> None:
            opened.append(self)
            # Give other threads the time to look for a bar as well.
            with suppress(threading.BrokenBarrierError):
                met.wait(0.2)
            super().start()

    met = threading.Barrier(2)
    monkeypatch.setattr("rich.progress.Progress", Counted)
    reporter = Reporter()
    reporter._err, reporter._terminal = io.StringIO(), True

    def work(number: int) -> None:
        ready.wait(20)
        for done in range(20):
            reporter(Event("progress", f"task {number}", {"done": done, "total": 20}))
            reporter(Event("note", f"note {number}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    reporter.close()
    assert len(opened) == 1
    assert not any(bar.live.is_started for bar in opened)


def test_what_comes_after_the_end_opens_no_bar() -> None:
    """A thread that was left behind goes on telling."""
    reporter = Reporter()
    stream = io.StringIO()
    reporter._err, reporter._terminal = stream, True
    reporter(Event("progress", "copying"))
    reporter.end()
    reporter(Event("progress", "still copying"))
    assert reporter._bar is None
    reporter(Event("warning", "left behind"))
    assert stream.getvalue().splitlines()[-1] == "warning: left behind"


def test_lines_of_threads_in_a_pipe_are_whole() -> None:
    class Slow(io.StringIO):
        """A stream that other threads get at between the parts of a line."""

        def write(self, text: str) -> int:
            for letter in text:
                super().write(letter)
                time.sleep(0)
            return len(text)

    reporter, stream = Reporter(), Slow()
    reporter._err = stream
    lines = [f"task {number} is at its work" for number in range(8)]
    threads = [
        threading.Thread(target=lambda text=line: reporter(Event("note", text))) for line in lines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(stream.getvalue().splitlines()) == lines


def test_markup_in_a_text_stays_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Reporter()
    stream = io.StringIO()
    reporter._err, reporter._terminal = stream, True
    reporter(Event("progress", "waiting for [red]x"))
    reporter(Event("warning", "[bold]not bold"))
    reporter.close()
    assert "warning: [bold]not bold" in stream.getvalue()


@pytest.mark.parametrize(
    ("answer", "expected"), [("y\n", True), ("YES\n", True), ("n\n", False), ("", False)]
)
def test_anything_but_yes_is_no(
    answer: str,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert output.ask("Remove it?") is expected
    assert capsys.readouterr() == ("", "Remove it? [y/N] ")
