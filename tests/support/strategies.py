"""Labs and records for property tests (Hypothesis)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

from hypothesis import strategies as st

from poclab.model.lab import DataDisk, Forward, Lab, Mode, Network, Nic, Ready, Vm
from poclab.model.record import Deployment, HistoryEntry, NetworkRecord, NicRecord, VmRecord
from poclab.model.version import Profile, Ref
from poclab.model.vm_volumes import overlay_volume
from poclab.store.warm_states import frozen_disks

MIB = 1024**2

names = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,8}", fullmatch=True)
refs = st.builds(Ref, names, tags)
sizes = st.integers(1, 100_000).map(lambda count: count * MIB)
digests = st.from_regex(r"(blake3|sha256):[0-9a-f]{64}", fullmatch=True)
macs = st.integers(0, 2**24 - 1).map(
    lambda number: f"52:54:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
)
# Whatever is stored as it is: what XML 1.0 can carry in an attribute, and no control characters.
texts = st.text(st.characters(min_codepoint=32, exclude_categories=("C", "Z")), max_size=20)
keys = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
ready = st.one_of(
    st.none(),
    st.builds(Ready, st.just("ssh"), timeout=st.integers(1, 3600)),
    st.builds(Ready, st.just("tcp"), port=st.integers(1, 65535)),
    st.builds(Ready, st.just("agent")),
)
disks = st.lists(
    st.builds(DataDisk, names, sizes, st.booleans()), max_size=3, unique_by=lambda item: item.name
).map(tuple)
modes = st.sampled_from(Mode)


def _cidr(index: int) -> IPv4Network:
    return IPv4Network((0x0A4D0000 + index * 256, 24))


@st.composite
def labs(draw: st.DrawFn, name: str = "acme", most: int = 5) -> Lab:
    """A valid lab of up to `most` VMs."""
    net_names = draw(st.lists(names, max_size=3, unique=True))
    networks = tuple(
        Network(item, draw(modes), _cidr(index)) for index, item in enumerate(net_names)
    )
    vm_names = draw(st.lists(names, max_size=most, unique=True))
    vms = tuple(
        Vm(
            item,
            Ref("shop", draw(st.sampled_from(["v1", "v2", "v3"]))),
            cpus=draw(st.integers(1, 4)),
            memory=draw(sizes),
            networks=tuple(_nic(draw, network, index) for network in _some(draw, networks)),
            disks=draw(disks),
            after=tuple(draw(st.sets(st.sampled_from(vm_names[:index])))) if index else (),
            ready=draw(ready),
            ports=(Forward(8000 + index, 80),) if draw(st.booleans()) else (),
            user=draw(st.sampled_from([None, "root", "demo"])),
            disk_size=draw(st.sampled_from([None, 4 * 1024 * MIB])),
        )
        for index, item in enumerate(vm_names)
    )
    return Lab(name, networks=networks, vms=vms)


def _some(draw: st.DrawFn, networks: tuple[Network, ...]) -> list[Network]:
    return [network for network in networks if draw(st.booleans())]


def _nic(draw: st.DrawFn, network: Network, index: int) -> Nic:
    given = network.cidr.network_address + 100 + index
    return Nic(network.name, given if draw(st.booleans()) else None)


@st.composite
def records(draw: st.DrawFn, /, **given: Any) -> VmRecord:
    """A record of a VM."""
    nics = st.lists(
        st.builds(
            NicRecord,
            names,
            macs,
            st.one_of(
                st.none(),
                st.integers(2, 254).map(lambda host: IPv4Interface((0x0A4D0100 + host, 24))),
            ),
            modes,
        ),
        max_size=3,
    )
    events = st.lists(
        st.builds(
            HistoryEntry,
            st.just("2026-01-01T00:00:00Z"),
            st.just("reset"),
            refs,
            digests,
            texts,
            st.sampled_from(["", "warm", "cold"]),
            st.none() | st.integers(0, 9999).map(lambda tenths: tenths / 10),
        ),
        max_size=4,
    )
    found = draw(
        st.builds(
            VmRecord,
            lab=names,
            name=names,
            wanted=refs,
            version=refs,
            digest=digests,
            overlay=st.just(""),
            cpus=st.integers(1, 64),
            memory=sizes,
            profile=st.sampled_from(Profile),
            user=names,
            nics=nics.map(tuple),
            disks=disks,
            disk_size=st.none() | sizes,
            forwards=st.lists(
                st.builds(Forward, st.integers(1, 65535), st.integers(1, 65535)), max_size=3
            ).map(tuple),
            after=st.lists(names, max_size=3).map(tuple),
            ready=ready,
            ssh_key=keys,
            fresh=st.booleans(),
            parents=st.lists(digests, max_size=3).map(tuple),
            warm=st.booleans(),
            in_place=st.sampled_from([0, 2]).flatmap(
                lambda count: st.tuples(*[st.builds(Deployment, refs, digests, digests)] * count)
            ),
            tpm=st.booleans(),
            history=events.map(tuple),
        )
    )
    found = replace(found, **given)
    mark = draw(st.from_regex(r"[0-9a-f]{8}(-[0-9a-f]{8})?", fullmatch=True))
    found = replace(found, overlay=overlay_volume(found.lab, found.name, mark))
    if any(disk.keep for disk in found.disks):
        return found  # no warm state holds a disk that is kept
    below = replace(found, overlay=overlay_volume(found.lab, found.name, "frozen"))
    return replace(found, frozen=draw(st.sampled_from(((), frozen_disks(below)))))


network_records = st.builds(NetworkRecord, names, names, modes, st.integers(0, 1000).map(_cidr))
