"""What was read back is of the right type and range, or it is refused: forged and damaged records.

The generators are in tests/hostile/records.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core import errors
from poclab.core.errors import PoclabError
from poclab.core.plaintext import stored
from poclab.definitions import metadata
from poclab.model import shapes, version_volumes
from poclab.model.lab import Forward, Ready
from poclab.model.record import Deployment, Frozen
from poclab.model.version import Origin, Ref
from poclab.model.volumes import Kind, VolumeName, find
from poclab.store import manifest, marks, parked, warm_states
from poclab.store.marks import Mark, Marked, Pending
from poclab.store.parked import NEVER, Parked
from poclab.store.sealed import MalformedError, seal
from poclab.store.warm_states import WarmState
from tests.hostile import labels, records
from tests.support import make, strategies

SYSTEM = "overlay.acme.vm1.00000001.qcow2"
VERSION = make.version(
    labels={"message": "a line"},
    parents=(make.digest(Ref("shop", "v0")),),
    origin=Origin("built", "localhost/shop", "sha256:" + "1" * 64, "direct", {"rootfs": "ext4"}),
)
RECORD = make.record(
    nics=(make.nic(),),
    disks=(make.disk(), make.disk("kept", keep=True)),
    forwards=(Forward(22000, 22),),
    after=("db",),
    ready=Ready("tcp", 80),
    frozen=(Frozen("", "overlay.acme.vm1.00000002.qcow2"),),
    in_place=(Deployment(Ref("shop", "v2"), make.digest(Ref("shop", "v2")), "sha256:" + "2" * 64),),
    disk_size=2**31,
)
MARK = Mark(
    "acme", "start", "2026-01-01T00:00:00Z", "ann", "a line",
    (Marked("vm1", Ref("shop", "v1"), VERSION.digest),),
    (Pending("vm1", Ref("shop", "v2"), SYSTEM),),
)  # fmt: skip
STATE = WarmState(
    "acme", "vm1", Ref("shop", "v1"), VERSION.digest, VERSION.parents, {"its version": "1"},
    (Frozen("", SYSTEM), Frozen("tmp", "scratch.acme.vm1.tmp.00000001.qcow2")),
    "overlay.acme.vm1.00000002.qcow2", "2026-01-01T00:00:00Z", complete=True,
)  # fmt: skip
PARKED = Parked(replace(RECORD, history=()), "2026-01-01T00:00:00Z", "ann", NEVER)

KINDS: dict[str, tuple[bytes, Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    "version": (manifest.encode(VERSION), manifest.decode, manifest.encode),
    "mark": (marks.encode(MARK), marks.decode, marks.encode),
    "parked": (parked.encode(PARKED), parked.decode, parked.encode),
    "warm": (warm_states.encode(STATE), warm_states.decode, warm_states.encode),
}


def body(kind: str) -> dict[str, Any]:
    """A good manifest's body, without its checksum."""
    found: dict[str, Any] = json.loads(KINDS[kind][0])
    del found["checksum"]
    return found


def sound(value: object) -> bool:
    """Whether a value has the types that its dataclass says, as far as JSON's go."""
    if is_dataclass(value):
        return all(sound(getattr(value, item.name)) for item in fields(value))
    if isinstance(value, dict):
        return all(isinstance(x, str) for pair in value.items() for x in pair)
    if isinstance(value, tuple):
        return all(map(sound, value))
    return not isinstance(value, list)


def outcome(read: Callable[[Any], Any], value: object) -> tuple[Any, ValueError | None]:
    """What a decoder gives, or the one error that it may raise."""
    try:
        return read(value), None
    except ValueError as error:
        return None, error


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_with_any_value_of_another_type_is_malformed(kind: str) -> None:
    """Whatever stands where: a ValueError, or a value of the right type; never another error."""
    good, (_, decode, encode) = body(kind), KINDS[kind]
    refused = 0
    for where, value, changed in records.twisted(good):
        data = seal(changed)
        found, error = outcome(decode, data)
        if error:
            refused += 1
            assert where == "format" or isinstance(error, MalformedError), where
            assert str(error)
            assert str(error).isprintable()
            continue
        assert sound(found), (where, value)
        assert decode(encode(found))  # ... and it can be written again
        if value is not records.twisted:
            assert type(value) is type(records.at(good, where)), (where, value)
    assert refused > 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_may_be_no_object_and_nested_as_deep_as_it_likes(kind: str) -> None:
    decode = KINDS[kind][1]
    for data in (
        b"",
        b"[]",
        b"7",
        b'"x"',
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
    ):
        with pytest.raises(ValueError, match=r"."):
            decode(data)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("version", "size", -1),
        ("version", "size", 2**47),
        ("version", "virtual_size", 1.0),
        ("version", "digest", "blake3:" + "0" * 63),
        ("version", "digest", "blake3:../../../etc/passwd"),
        ("version", "parents", ["md5:" + "0" * 64]),
        ("version", "created", "yesterday"),
        ("version", "created", "2026-13-01T00:00:00Z"),
        ("version", "ref", "shop"),
        ("version", "ref", "shop:v1/../x"),
        ("version", "profile", "amiga"),
        ("version", "protected", 1),
        ("version", "labels", {"a": 1}),
        ("mark", "vms", [{"vm": "../x", "version": "shop:v1", "digest": VERSION.digest}]),
        ("mark", "pending", [{"vm": "vm1", "version": "shop:v1", "overlay": "../x"}]),
        ("parked", "expires", "soon"),
        ("parked", "record", "<vm/>"),
        ("parked", "record", "no XML"),
        ("warm", "disks", []),
        ("warm", "disks", [{"disk": "", "volume": "overlay.acme.vm2.00000001.qcow2"}]),
        ("warm", "disks", [{"disk": "", "volume": "data.acme.vm1.db.qcow2"}]),
        ("warm", "disks", [{"disk": "", "volume": "overlay.acme.vm1.d/../.."}]),
        ("warm", "onto", "overlay.other.vm1.00000001.qcow2"),
    ],
)
def test_what_is_out_of_range_or_somebody_else_s_is_malformed(
    kind: str, key: str, value: object
) -> None:
    with pytest.raises(MalformedError, match=r"."):
        KINDS[kind][1](seal({**body(kind), key: value}))


def test_a_newer_format_is_not_damaged_and_another_is() -> None:
    for kind, (_, decode, _) in KINDS.items():
        with pytest.raises(errors.NewerFormatError):
            decode(seal({**body(kind), "format": 2, "something": "new"}))
        for number in (0, -1, None, "1", True, 1.5):
            with pytest.raises(MalformedError):
                decode(seal({**body(kind), "format": number}))


# --- metadata ---------------------------------------------------------------------------------


def test_a_record_with_any_odd_attribute_is_refused_or_sound() -> None:
    element = metadata._bare(metadata.vm_element(RECORD))
    element.set(metadata.STARTED, "2026-01-01T00:00:00Z")
    for where, text, changed in records.twisted_elements(element):
        found, error = outcome(metadata.vm_record, changed)
        _, other = outcome(metadata.started, changed)
        if error or other:
            assert str(error or other).isprintable(), (where, text)
            continue
        assert sound(found)
        names = [found.overlay, *(item.volume for item in found.frozen)]
        assert all(VolumeName.parse(name).of("acme", "vm1") for name in names), (where, text)
        assert not found.user.startswith("-")
        assert found.ssh_key.isprintable()


@pytest.mark.parametrize(
    ("tag", "key", "text"),
    [
        ("version", "overlay", "overlay.acme.vm1.d/../.."),
        ("version", "overlay", "overlay.acme.vm1.d/../../etc.qcow2"),
        ("version", "overlay", "overlay.acme.vm11.00000001.qcow2"),
        ("frozen", "volume", "data.acme.vm1.kept.qcow2"),
        ("frozen", "volume", "overlay.acme.vm1.00000001.qcow2"),  # its own
        ("frozen", "volume", "../victim"),
        ("hardware", "cpus", "0"),
        ("hardware", "memory", str(2**60)),
        ("disk", "size", "-1"),
        ("disk", "name", "kept"),  # twice
        ("forward", "host", "65536"),
        ("forward", "guest", "0"),
        ("nic", "mac", "52:54:00:00:00:01;rm"),
        ("nic", "ip", "::1/64"),
        ("ready", "kind", "telepathy"),
        ("ready", "port", "0"),
        ("ready", "timeout", "1e3"),
        ("event", "time", "x"),
        ("login", "user", "-oProxyCommand=x"),
        ("login", "key", "ssh-ed25519 AAAA\nf+ /etc/passwd"),
    ],
)
def test_a_record_of_somebody_else_s_disks_or_of_nonsense_is_refused(
    tag: str, key: str, text: str
) -> None:
    element = metadata._bare(metadata.vm_element(RECORD))
    part = element.find(tag)
    assert part is not None
    part.set(key, text)
    with pytest.raises(ValueError, match=r"metadata"):
        metadata.vm_record(element)


def test_when_a_domain_was_started_is_a_time() -> None:
    element = metadata.vm_element(RECORD)
    assert metadata.started(element) is None
    element.set(metadata.STARTED, "2026-01-01T00:00:00Z")
    assert metadata.started(element) == "2026-01-01T00:00:00Z"
    for text in ("x", "", "2026-02-31T00:00:00Z", "2026-01-01T00:00:00Z\n"):
        element.set(metadata.STARTED, text)
        with pytest.raises(ValueError, match="started"):
            metadata.started(element)


# --- names of volumes -------------------------------------------------------------------------


@pytest.mark.parametrize("text", records.BAD_NAMES, ids=ascii)
def test_what_is_no_whole_name_does_not_parse(text: str) -> None:
    assert find(text) is None


@given(strategies.records())
def test_every_volume_of_a_record_parses_back(record: Any) -> None:
    for text in make.volumes_of([make.observed_vm(record)]):
        name = VolumeName.parse(text)
        assert str(name) == text
        assert name.of(record.lab, record.name)


@given(st.text(max_size=60) | st.from_regex(r"(overlay|data|base|move|mark)\.[a-z./-]{0,30}"))
def test_a_name_that_parses_is_one_file(text: str) -> None:
    name = find(text)
    if name:
        assert str(name) == text
        assert text not in (".", "..")
        assert not set(text) & set("/\0 \n\t\x1b")


@given(strategies.refs, strategies.names, strategies.digests)
def test_names_are_made_as_they_are_read(ref: Ref, lab: str, digest: str) -> None:
    base = version_volumes.base_volume(digest)
    for text, kind in (
        (version_volumes.manifest_volume(ref), Kind.MANIFEST),
        (marks.mark_volume(lab, ref.tag), Kind.MARK),
        (base, Kind.BASE),
        (version_volumes.packed_volume(base), Kind.BASE),
        (f"move.data.{lab}.{lab}.{lab}.qcow2", Kind.MOVE),
    ):
        name = VolumeName.parse(text)
        assert (str(name), name.kind) == (text, kind)
    assert VolumeName.parse(version_volumes.packed_volume(base)).packed


def test_only_a_data_disk_becomes_another_name_of_itself() -> None:
    kept = VolumeName.parse("data.acme.vm1.db.qcow2")
    one = VolumeName.parse("scratch.acme.vm1.db.00000001.qcow2")
    assert kept.may_become(one)
    assert one.may_become(kept)
    assert one.may_become(replace(one, generation="2"))
    for other in (
        "data.acme.vm1.db2.qcow2",
        "data.acme.vm2.db.qcow2",
        "data.other.vm1.db.qcow2",
        SYSTEM,
        "poclab.json",
        str(kept),
    ):
        assert not kept.may_become(VolumeName.parse(other))


# --- free text --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", records.UNPRINTABLE, ids=ascii)
def test_free_text_is_plain_once_it_is_stored(text: str) -> None:
    version = replace(
        VERSION,
        labels={text: text},
        user=text,
        origin=replace(VERSION.origin, source=text, inputs={"args": text}),
    )
    found = manifest.decode(manifest.encode(version))
    texts = [*found.labels, *found.labels.values(), found.user, found.origin.source]
    mark = marks.decode(marks.encode(replace(MARK, by=text, message=text)))
    item = parked.decode(parked.encode(replace(PARKED, by=text)))
    for each in (*texts, *found.origin.inputs.values(), mark.by, mark.message, item.by):
        assert each.isprintable()
        assert each.encode()  # valid UTF-8
    assert stored(stored(text)) == stored(text)


@given(strategies.texts)
def test_plain_text_is_stored_as_it_is(text: str) -> None:
    assert stored(text) == text
    assert stored(f"{text}  {text}") == f"{text}  {text}"


def test_what_is_stored_is_bounded() -> None:
    assert len(stored("x" * 10**6)) == 4096
    assert len(stored("\x1b" * 10**6)) == 4096


def test_an_older_manifest_with_raw_text_still_counts() -> None:
    raw = body("version")
    raw["origin"]["source"] = raw["labels"]["message"] = "\x1b[31mcaf\udce9\n"
    found = manifest.decode(seal(raw))
    assert found.origin.source == found.labels["message"] == "\x1b[31mcaf\udce9\n"


def test_an_older_manifest_with_an_image_s_labels_as_they_were_still_counts() -> None:
    """Older versions of poclab kept all labels of a container image, and an empty user."""
    for given_ in (labels.many(), labels.long(), labels.odd()):
        raw = body("version") | {"labels": given_, "user": ""}
        found = manifest.decode(seal(raw))
        assert (found.labels, found.user) == (given_, "root")
        if given_ != labels.long():  # `image tag` and `image protect` write it anew
            assert manifest.decode(manifest.encode(found)).digest == found.digest


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"user": "-oProxyCommand=x"}, "user"),
        ({"user": "x" * 300}, "user: expected at most 256"),
        ({"labels": {f"{n}": "\N{PILE OF POO}" * 4096 for n in range(100)}}, "more than 4,194,304"),
        ({"labels": {"k" * 4096 + str(n): "" for n in range(2)}, "size": -1}, "size"),
        ({"parents": (VERSION.digest,) * 1001}, "parents: expected at most 1000"),
    ],
)
def test_nothing_is_written_that_its_own_reader_refuses(change: dict[str, Any], why: str) -> None:
    with pytest.raises(PoclabError, match="cannot record shop:v1") as raised:
        manifest.encode(replace(VERSION, **change))
    assert why in raised.value.why
    assert raised.value.fix


# --- shapes -----------------------------------------------------------------------------------


def test_an_error_says_where_it_is() -> None:
    def pair(given_: shapes.Fields) -> tuple[str, int]:
        return given_("name", shapes.NAME), given_("port", shapes.PORT)

    shape = shapes.mapping(shapes.NAME, shapes.listed(shapes.fields(pair)))
    assert shape({"a": [{"name": "x", "port": 1}]}) == {"a": (("x", 1),)}
    for value, text in (
        ({"a": [{"name": "x", "port": "1"}]}, "['a'][0].port: expected a whole number, found text"),
        ({"a": [{"port": 1}]}, "['a'][0].name: missing"),
        ({"a": [{"name": "x", "port": 1, "y": 1}]}, "['a'][0]: unknown field 'y'"),
        ({"a": {}}, "['a']: expected a list, found an object"),
    ):
        with pytest.raises(shapes.ShapeError) as caught:
            shape(value)
        assert str(caught.value) == text
