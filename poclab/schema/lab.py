"""The lab file: its form, and the lab it describes.

The form is a set of pydantic models, which also give the JSON Schema for editors; what one
part of the file says about another is checked in `references`. All faults of a file are
reported in one go.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from poclab.model import lab as model
from poclab.model import names, version
from poclab.schema import fields, references, scalars, yaml_source
from poclab.schema.fields import (
    Cpus,
    DiskSize,
    Flag,
    Memory,
    OptionalDiskSize,
    OptionalFlag,
    Strict,
    Text,
    User,
    choice_schema,
    leaf,
    text_schema,
)
from poclab.schema.yaml_source import Scalar

MAX_VMS = 1000
MAX_NETWORKS = 64
# What fits on the PCIe buses of one machine, with room to spare.
MAX_NICS = 16
MAX_DISKS = 16
MAX_PORTS = 64
READY_TIMEOUT = 300

KIND = "lab file"


def _key(kind: str) -> PlainValidator:
    """Check the name of an entry; keys come as plain strings."""
    return PlainValidator(lambda key: scalars.usage(lambda: names.check_name(kind, str(key))))


_NAME = text_schema(names.NAME_PATTERN)
_PORT = WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65535})
_TRUE = WithJsonSchema({"type": "boolean", "const": True})
_DURATION = WithJsonSchema(
    {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 86400},
            {"type": "string", "pattern": "^[0-9]{1,5}[smh]?$"},
        ],
        "examples": [300, "5m"],
    }
)

NetworkName = Annotated[str, leaf(scalars.name("network")), _NAME]
VmName = Annotated[str, leaf(scalars.name("VM")), _NAME]


class NetworkModel(Strict):
    """A network of the lab."""

    mode: Annotated[str, leaf(scalars.one_of(*model.Mode)), choice_schema(model.Mode)] = Field(
        model.Mode.NAT.value,
        description="nat reaches the world through the host; isolated does not",
    )
    cidr: Annotated[IPv4Network, leaf(scalars.cidr), text_schema(scalars.CIDR_PATTERN)] = Field(
        description="the addresses, /8 to /29; the first one is the host's"
    )


class NicModel(Strict):
    """A VM's place on a network; the network's name alone will do."""

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: object) -> object:
        return {"name": value} if isinstance(value, Scalar) else value

    name: NetworkName = Field(description="the network's name")
    ip: Annotated[IPv4Address | None, leaf(scalars.ip), text_schema(scalars.IP_PATTERN)] = Field(
        None, description="a fixed address; assigned when left out"
    )
    mac: Annotated[str | None, leaf(scalars.mac), text_schema(scalars.MAC_PATTERN)] = Field(
        None, description="a fixed MAC address; derived from the names when left out"
    )


class DiskModel(Strict):
    """A disk beside the system disk, empty when new."""

    name: Annotated[
        str,
        leaf(scalars.disk_name),
        text_schema(names.NAME_PATTERN, maxLength=scalars.MAX_DISK_NAME),
    ] = Field(description="its name, also the serial number that the guest sees")
    size: DiskSize = Field(description="its size, 1MiB to 64TiB")
    keep: Flag = Field(False, description="whether reset and down leave it alone")


class ReadyModel(Strict):
    """When a VM counts as ready: one of ssh, tcp and agent."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [kind]} for kind in references.READY_KINDS]}
    )

    ssh: Annotated[bool | None, leaf(scalars.only_true), _TRUE] = Field(
        None, description="a login over SSH works"
    )
    tcp: Annotated[int | None, leaf(scalars.whole(1, 65535, "a port")), _PORT] = Field(
        None, description="this TCP port answers"
    )
    agent: Annotated[bool | None, leaf(scalars.only_true), _TRUE] = Field(
        None, description="the QEMU guest agent is connected"
    )
    timeout: Annotated[int, leaf(scalars.duration), _DURATION] = Field(
        READY_TIMEOUT, description="seconds to wait, or such as 90s, 5m, 1h"
    )


class DefaultsModel(Strict):
    """What every VM has that does not say otherwise."""

    cpus: Cpus = Field(None, description="virtual CPUs, 1 to 512")
    memory: Memory = Field(None, description="memory, 16MiB to 16TiB")
    networks: list[NetworkName] | None = Field(
        None, max_length=MAX_NICS, description="the names of networks"
    )
    ready: ReadyModel | None = None
    user: User = Field(None, description="the user to log in as over SSH")
    warm: OptionalFlag = Field(None, description="whether their memory is kept for warm resets")
    tpm: OptionalFlag = Field(None, description="whether they have a TPM")


class VmModel(Strict):
    """A VM of the lab."""

    image: Annotated[version.Ref, leaf(scalars.image), text_schema(scalars.IMAGE_PATTERN)] = Field(
        description="the version it runs, IMAGE:TAG"
    )
    cpus: Cpus = Field(None, description="virtual CPUs, 1 to 512; 2 when nothing says otherwise")
    memory: Memory = Field(
        None, description="memory, 16MiB to 16TiB; 2GiB when nothing says otherwise"
    )
    disk: OptionalDiskSize = Field(
        None, description="the size of the system disk; the version's own when left out"
    )
    networks: list[NicModel] | None = Field(
        None, max_length=MAX_NICS, description="the networks it is on"
    )
    disks: list[DiskModel] = Field([], max_length=MAX_DISKS, description="its data disks")
    after: list[VmName] = Field([], max_length=MAX_VMS, description="VMs that must be ready first")
    ready: ReadyModel | None = None
    ports: list[
        Annotated[model.Forward, leaf(scalars.forward), text_schema(scalars.PORTS_PATTERN)]
    ] = Field(
        [],
        max_length=MAX_PORTS,
        description="ports of 127.0.0.1 that lead to the guest, HOST:GUEST (qemu:///session)",
    )
    user: User = Field(None, description="the user to log in as over SSH")
    warm: OptionalFlag = Field(
        None, description="whether its memory is kept when it is ready, for warm resets"
    )
    tpm: OptionalFlag = Field(None, description="whether it has a TPM (2.0, emulated)")


class LabModel(Strict):
    """A lab file."""

    name: Annotated[str, leaf(scalars.name("lab")), _NAME] = Field(description="the lab's name")
    description: Text = Field("", description="what the lab is for")
    networks: dict[Annotated[str, _key("network"), _NAME], NetworkModel] = Field(
        {}, max_length=MAX_NETWORKS, description="the lab's networks by name"
    )
    defaults: DefaultsModel | None = None
    vms: dict[Annotated[str, _key("VM"), _NAME], VmModel] = Field(
        min_length=1, max_length=MAX_VMS, description="the lab's VMs by name"
    )


def load_lab(path: Path) -> model.Lab:
    """Read a lab file.

    Raises:
        UsageError: the file cannot be read.
        Problems: the file is no valid lab file; all faults are in it.
    """
    return parse_lab(yaml_source.read(path, KIND), str(path))


def parse_lab(text: str, name: str) -> model.Lab:
    """Read the text of a lab file.

    Args:
        text: the file's text.
        name: the file's name, for messages.

    Raises:
        Problems: it is no valid lab file; all faults are in it.
    """
    document = yaml_source.parse(text, name, KIND)
    lab, faults = fields.validate(LabModel, document)
    faults += references.check(document.root)
    if lab is None or faults:
        raise yaml_source.fail(name, KIND, faults)
    return _lab(lab)


def json_schema() -> dict[str, object]:
    """The JSON Schema (draft 2020-12) of lab files, for editors."""
    schema: dict[str, Any] = fields.json_schema(LabModel, "poclab lab file")
    # The short form, which pydantic does not see: it is spelled out before validation.
    networks = schema["$defs"]["VmModel"]["properties"]["networks"]
    networks["items"] = {"anyOf": [_NAME.json_schema, networks["items"]]}
    return schema


def _lab(lab: LabModel) -> model.Lab:
    defaults = lab.defaults or DefaultsModel.model_validate({})
    return model.Lab(
        name=lab.name,
        description=lab.description,
        networks=tuple(
            model.Network(name, model.Mode(network.mode), network.cidr)
            for name, network in lab.networks.items()
        ),
        vms=tuple(_vm(name, vm, defaults) for name, vm in lab.vms.items()),
    )


def _vm(name: str, vm: VmModel, defaults: DefaultsModel) -> model.Vm:
    """A VM with the defaults filled in."""
    nics = vm.networks
    if nics is None:
        nics = [NicModel.model_construct(name=network) for network in defaults.networks or ()]
    return model.Vm(
        name=name,
        image=vm.image,
        cpus=vm.cpus or defaults.cpus or model.Vm.cpus,
        memory=vm.memory or defaults.memory or model.Vm.memory,
        networks=tuple(model.Nic(nic.name, nic.ip, nic.mac) for nic in nics),
        disks=tuple(model.DataDisk(disk.name, disk.size, disk.keep) for disk in vm.disks),
        after=tuple(vm.after),
        ready=_ready(vm.ready or defaults.ready),
        ports=tuple(vm.ports),
        user=vm.user or defaults.user,
        disk_size=vm.disk,
        warm=bool(defaults.warm if vm.warm is None else vm.warm),
        tpm=bool(defaults.tpm if vm.tpm is None else vm.tpm),
    )


def _ready(ready: ReadyModel | None) -> model.Ready | None:
    if ready is None:
        return None
    if ready.tcp is not None:
        return model.Ready("tcp", ready.tcp, ready.timeout)
    return model.Ready("ssh" if ready.ssh else "agent", 0, ready.timeout)
