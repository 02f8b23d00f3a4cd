"""All that is known of one version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from poclab.model.host import ObservedVm
from poclab.model.version import Ref, Version
from poclab.model.version_volumes import bases
from poclab.store.marks import Marks
from poclab.store.parked import Parked, ParkedDisks
from poclab.store.usage import users
from poclab.store.versions import Store
from poclab.virt.host import Host


@dataclass(frozen=True)
class VersionRow:
    """What `poclab image show` prints; the fields are the JSON's keys.

    Attributes:
        name: the image.
        tag: the tag.
        digest: that of the base disk.
        size: bytes of the base disk's file.
        virtual_size: bytes a guest sees.
        profile: which devices the guest can drive.
        user: the user to log in as.
        created: when it was published.
        origin: how it came, "built" for one.
        source: the container image's name, the imported file's, or the VM as `LAB/VM`.
        source_digest: the digest of that.
        builder: the disk builder's name.
        inputs: what else went into it, by name.
        labels: the container image's labels.
        parents: digests of the bases it is layered on, nearest first.
        protected: whether `image rm` refuses it.
        same_disk: other versions with this disk, `IMAGE:TAG`.
        layered: versions that are layered on this disk, `IMAGE:TAG`.
        used_by: VMs on it, `LAB/VM`, marks that name it, `LAB@MARK`, and parked disks,
            `LAB/VM@TIME`.
    """

    name: str
    tag: str
    digest: str
    size: int
    virtual_size: int
    profile: str
    user: str
    created: str
    origin: str
    source: str
    source_digest: str
    builder: str
    inputs: dict[str, str]
    labels: dict[str, str]
    parents: list[str]
    protected: bool
    same_disk: list[str]
    layered: list[str]
    used_by: list[str]


def show(host: Host, ref: Ref) -> VersionRow:
    """What is known of a version.

    Raises:
        PoclabError: there is none of that name.
    """
    store = Store(host.pool, host.uri)
    vms, marks = host.vms(), Marks.of(host.pool)
    return describe(
        store.get(ref), store.versions(), vms, marks, ParkedDisks.of(host.pool).kept(vms)
    )


def describe(
    version: Version,
    versions: list[Version],
    vms: list[ObservedVm],
    marks: Marks,
    parked: Iterable[Parked] = (),
) -> VersionRow:
    """What is known of a version, from what is on its host."""
    base = bases(version)[0]
    others = [other for other in versions if other.ref != version.ref]
    return VersionRow(
        name=version.ref.image,
        tag=version.ref.tag,
        digest=version.digest,
        size=version.size,
        virtual_size=version.virtual_size,
        profile=str(version.profile),
        user=version.user,
        created=version.created,
        origin=version.origin.kind,
        source=version.origin.source,
        source_digest=version.origin.digest,
        builder=version.origin.builder,
        inputs=dict(version.origin.inputs),
        labels=dict(version.labels),
        parents=list(version.parents),
        protected=version.protected,
        same_disk=[str(other.ref) for other in others if other.digest == version.digest],
        layered=[str(other.ref) for other in others if base in bases(other)[1:]],
        used_by=users(version, vms, marks, parked),
    )
