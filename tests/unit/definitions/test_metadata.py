"""Records in XML and back: through libvirt's two views, and never from another program."""

from __future__ import annotations

from dataclasses import replace
from xml.etree.ElementTree import Element, fromstring, tostring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poclab.core.plaintext import stored
from poclab.definitions import metadata
from poclab.definitions.network import detour
from poclab.model.lab import Ready
from poclab.model.record import Deployment, HistoryEntry, NetworkRecord, VmRecord
from poclab.model.version import Ref
from poclab.model.vm_volumes import overlay_volume
from poclab.store.warm_states import frozen_disks
from tests.support import make, strategies


def in_a_document(element: Element, kind: str) -> str:
    """The element in the XML of a whole object, where it has its namespace."""
    root = Element(kind)
    holder = Element("metadata")
    holder.append(Element("{https://example.org/other}vm", {"format": "1"}))
    holder.append(element)
    root.append(holder)
    return tostring(root, encoding="unicode")


@given(strategies.records())
def test_a_record_comes_back_from_the_element_libvirt_returns(record: VmRecord) -> None:
    """virDomainGetMetadata returns the element without its namespace."""
    text = metadata.text(metadata.vm_element(record))
    assert metadata.NAMESPACE not in text
    assert metadata.vm_record(fromstring(text)) == record


@given(strategies.records())
def test_a_record_comes_back_from_a_whole_document(record: VmRecord) -> None:
    document = in_a_document(metadata.vm_element(record), "domain")
    assert f'xmlns:{metadata.PREFIX}="{metadata.NAMESPACE}"' in document
    found = metadata.find(document, "vm")
    assert found is not None
    assert metadata.vm_record(found) == record


@given(strategies.network_records)
def test_a_network_comes_back_both_ways(record: NetworkRecord) -> None:
    element = metadata.network_element(record)
    assert metadata.network_record(fromstring(metadata.text(element))) == record
    found = metadata.find(in_a_document(element, "network"), "network")
    assert found is not None
    assert metadata.network_record(found) == record


def test_a_network_for_a_moment_comes_back_too() -> None:
    """Else nobody would take it for the lab's, and remove what an interrupted command left."""
    record = detour(make.network_record())
    element = metadata.network_element(record)
    assert metadata.network_record(fromstring(metadata.text(element))) == record


def test_other_peoples_metadata_is_not_found() -> None:
    foreign = Element("{https://example.org/other}vm", {"format": "1"})
    assert metadata.find(in_a_document(foreign, "domain"), "vm") is None
    assert metadata.find("<domain/>", "vm") is None


def test_only_the_latest_history_is_kept() -> None:
    entries = tuple(
        HistoryEntry(f"2026-01-01T00:00:{n:02d}Z", "reset", *_version(n), "tester")
        for n in range(60)
    )
    element = metadata.vm_element(make.record(history=entries))
    assert metadata.vm_record(element).history == entries[-metadata.HISTORY_LIMIT :]


def _version(number: int) -> tuple[Ref, str]:
    ref = Ref("shop", f"v{number}")
    return ref, make.digest(ref)


@given(
    st.lists(strategies.digests, max_size=1000),
    st.sampled_from(["a", "a" * 40]),
    st.sampled_from(["v", "v" * 128]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=5000),
)
@settings(max_examples=20)
def test_a_record_of_the_longest_names_comes_back(
    parents: list[str], name: str, tag: str, by: str
) -> None:
    """Whatever poclab writes it reads: a name has 40 characters, a tag and a mark's name 128."""
    ref = Ref(name, tag)
    actions = (f"reset to {tag}", "x" * 256)
    lines = tuple(
        HistoryEntry("2026-01-01T00:00:00Z", action, ref, make.digest(ref), by)
        for action in actions
    )
    nics = (make.nic(network=name),)
    disks = (make.disk(name[:20]),)
    container = f"sha256:{'a' * 64}"
    record = make.record(
        wanted=ref,
        version=ref,
        parents=tuple(parents),
        history=lines,
        user="u" * 256,
        ssh_key="k" * 4096,
        nics=nics,
        disks=disks,
        after=(name,) * 1000,
        in_place=(Deployment(ref, make.digest(ref), container),) * 2,
    )
    record = replace(
        record, lab=name, name=name, overlay=overlay_volume(name, name, "00000001-00000002")
    )
    below = replace(record, overlay=overlay_volume(name, name, "frozen"))
    record = replace(record, frozen=frozen_disks(below))
    found = metadata.vm_record(fromstring(metadata.text(metadata.vm_element(record))))
    plain = tuple(replace(line, by=stored(by)) for line in lines)
    assert found == replace(record, history=plain)


def test_a_record_that_is_nested_deeply_is_refused() -> None:
    """Not a TypeError: that is what ElementTree makes of a RecursionError in a generator."""
    element = fromstring("<vm>" + "<a>" * 5000 + "</a>" * 5000 + "</vm>")
    with pytest.raises(ValueError, match="metadata"):
        metadata.vm_record(element)


NASTY = "a\"b<c>&'d ]]> ключ"


def test_markup_in_texts_stays_text() -> None:
    record = make.record(ssh_key=NASTY, history=(replace(make.record().history[0], by=NASTY),))
    assert metadata.vm_record(fromstring(metadata.text(metadata.vm_element(record)))) == record


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "a\nb", "a\0b", "\udcff", "\N{RIGHT-TO-LEFT OVERRIDE}"]
)
def test_who_did_it_is_stored_plain(text: str) -> None:
    record = make.record(history=(replace(make.record().history[0], by=f"ann{text}"),))
    (line,) = metadata.vm_record(metadata.vm_element(record)).history
    assert line.by.isprintable()
    assert line.by.startswith("ann")


def _edited(path: str, **attributes: str | None) -> Element:
    element = fromstring(
        metadata.text(
            metadata.vm_element(
                make.record(nics=(make.nic(),), disks=(make.disk(),), ready=Ready("ssh"))
            )
        )
    )
    target = element if path == "." else element.find(path)
    assert target is not None
    for name, value in attributes.items():
        if value is None:
            del target.attrib[name]
        else:
            target.set(name, value)
    return element


STRANGE = [
    (".", {"format": "2"}),
    (".", {"format": None}),
    (".", {"lab": None}),
    (".", {"name": None}),
    ("wanted", {"tag": None}),
    ("version", {"digest": None}),
    ("version", {"overlay": None}),
    ("version", {"overlay": ""}),
    ("version", {"overlay": "base.00.qcow2"}),
    ("version", {"overlay": "overlay.acme.vm2.00000001.qcow2"}),
    ("version", {"overlay": "data.acme.vm1.data.qcow2"}),
    ("version", {"size": "large"}),
    ("hardware", {"cpus": "two"}),
    ("hardware", {"memory": None}),
    ("hardware", {"profile": "amiga"}),
    ("login", {"user": None}),
    ("nic", {"ip": "10.77.1.300/24"}),
    ("nic", {"mode": "bridged"}),
    ("disk", {"size": None}),
    ("ready", {"timeout": None}),
    ("event", {"by": None}),
]


@pytest.mark.parametrize(("path", "change"), STRANGE, ids=[f"{a} {b}" for a, b in STRANGE])
def test_what_this_program_did_not_write_is_refused(
    path: str, change: dict[str, str | None]
) -> None:
    with pytest.raises(ValueError, match=r"metadata|invalid|valid|permitted"):
        metadata.vm_record(_edited(path, **change))


@pytest.mark.parametrize("part", ["wanted", "version", "hardware", "login"])
def test_a_missing_part_is_refused(part: str) -> None:
    element = _edited(".")
    missing = element.find(part)
    assert missing is not None
    element.remove(missing)
    with pytest.raises(ValueError, match=part):
        metadata.vm_record(element)


def test_a_network_is_no_vm_and_the_reverse() -> None:
    network = metadata.network_element(make.network_record())
    with pytest.raises(ValueError, match="another format"):
        metadata.vm_record(network)
    with pytest.raises(ValueError, match="another format"):
        metadata.network_record(metadata.vm_element(make.record()))


@pytest.mark.parametrize(
    "change", [{"format": "9"}, {"mode": "bridged"}, {"cidr": "10.77.1.1/24"}, {"cidr": "x"}]
)
def test_a_strange_network_is_refused(change: dict[str, str]) -> None:
    element = metadata.network_element(make.network_record())
    element.attrib.update(change)
    with pytest.raises(ValueError, match=r".+"):
        metadata.network_record(element)


@given(st.sampled_from(["format", "lab", "name", "mode", "cidr"]))
def test_a_network_without_a_part_is_refused(part: str) -> None:
    element = metadata.network_element(make.network_record())
    del element.attrib[part]
    with pytest.raises(ValueError, match="metadata"):
        metadata.network_record(element)


def test_what_newer_programs_add_is_passed_over() -> None:
    element = _edited(".")
    element.append(Element("later", {"x": "y"}))
    element.set("more", "1")
    assert metadata.vm_record(element).name == "vm1"
