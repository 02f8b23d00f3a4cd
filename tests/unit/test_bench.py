"""The benchmark's own parts that need no host: turns, tables, copies of definitions."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import fromstring, tostring

import pytest

from bench import results
from bench.measure import Comparison, MeasurementError, Series, interleaved
from bench.reset import guests
from bench.results import Result
from poclab.virt.block_jobs import system_disk

ROOT = Path(__file__).parents[2]


def test_tasks_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def task(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleaved({"a": lambda: task("a"), "b": lambda: task("b")}, 2)
    assert order == ["a", "b"] * 3
    assert found == {"a": Series("a", (3, 5)), "b": Series("b", (4, 6))}
    assert interleaved({"a": lambda: 7.0}, 1, before=0)["a"].seconds == (7.0,)


@pytest.mark.parametrize(("seconds", "bar", "met"), [(2.6, 1.3, True), (2.7, 1.3, False)])
def test_a_bar_is_met_or_missed(seconds: float, bar: float, met: bool) -> None:
    found = Comparison(Series("ours", (9, seconds, 1)), Series("theirs", (2,)), bar)
    assert found.met is met
    assert found.line(4).endswith(f"(bar 1.3x: {'met' if met else '**missed**'})")
    assert Comparison(found.of, found.against).met is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("virsh x: exit status 1\nerror: it is off\nerror: later\n", "it is off"),
        ("Traceback\n  raise X\nlibvirtError: no flash\n\n", "libvirtError: no flash"),
        (
            "/x.rb:2:in `create': Call failed: no flash (Libvirt::Error)\n\tfrom /x.rb:1:in `<x>'",
            "Call failed: no flash (Libvirt::Error)",
        ),
        ("", "it does not say why"),
    ],
)
def test_a_tool_that_fails_has_its_own_words(said: str, words: str) -> None:
    assert MeasurementError(said).words == words


def test_the_results_of_all_processes_become_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results"
    monkeypatch.setenv(results.FILE, str(file))
    series = Series("ours", (0.25, 1.5, 1.75))
    results.add(Comparison(series, Series("theirs", (1.0,)), 1.3).result("one"))
    results.add(Result("one", "disk", "7 MiB"))
    results.add(Result("two", "all", Series("", (11.0,)).brief, "2x", "1.5x", None))
    assert results.table(results.collected(file)) == [
        "| what | median (min - max) | against | bar |",
        "|---|---|---|---|",
        "| **one** | | | |",
        "| ours | 1500 ms (250 - 1750, n=3) | 1.50x | 1.3x: **missed** |",
        "| disk | 7 MiB |  |  |",
        "| **two** | | | |",
        "| all | 11.0 s (11.0 - 11.0, n=1) | 2x | 1.5x: does not apply |",
    ]


def test_a_copy_of_a_vm_has_nothing_of_its_own_in_common() -> None:
    source = fromstring((ROOT / "tests/golden/linux-system-tcg.xml").read_text())
    root = guests.copied(source, "hand")
    assert source.findtext("name") != root.findtext("name") == "hand"
    assert [root.find(tag) for tag in ("uuid", "metadata", "genid", "os/nvram")] == [None] * 4
    cards = root.findall("devices/interface")
    assert {card.find("source").get("network") for card in cards} == {guests.NETWORK}  # type: ignore[union-attr]
    assert {card.find("mac").get("address") for card in cards} == {guests.mac("hand")}  # type: ignore[union-attr]
    guests.put_disk(root, ("/top", "/middle", "/base"))
    disk = system_disk(tostring(root, encoding="unicode"))
    assert disk is not None
    assert disk.chain == ("/top", "/middle", "/base")
