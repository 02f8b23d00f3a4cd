"""Marks of labs: make one, commit what changed for it, list and remove them.

Everything is checked before the first VM is committed. Then the mark's manifest says what is being
made of which disks, the versions are made one after the other, and at last the manifest names them.
Stopped anywhere in between, the same command again takes the versions that are there already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from poclab.core import events, locks, paths
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import shown
from poclab.core.timestamps import now
from poclab.core.units import format_size
from poclab.disks.formats.qcow2 import is_written
from poclab.labs import commit, recovery
from poclab.labs.lab_host import LabHost
from poclab.labs.selectors import find_lab
from poclab.model.host import ObservedVm
from poclab.model.names import TAG_RULE, check_name, is_tag
from poclab.model.record import VmRecord
from poclab.model.version import Ref
from poclab.model.version_volumes import manifest_volume
from poclab.store.marks import Mark, Marked, Marks, Pending, encode, mark_volume
from poclab.virt.host import Host
from poclab.virt.pool import written
from poclab.virt.pool_local import LocalPool


@dataclass(frozen=True)
class MarkRequest:
    """What is to be marked.

    Attributes:
        lab: the lab.
        name: the mark's name.
        message: a line about it, or an empty string.
        commit: make versions of VMs that were written to.
        quiesce: have guests that run write everything out for that.
        force: move a mark that is there.
    """

    lab: str
    name: str
    message: str = ""
    commit: bool = False
    quiesce: bool = True
    force: bool = False


def mark(host: Host, request: MarkRequest) -> Mark:
    """Name the versions that the VMs of a lab run.

    Raises:
        UsageError: a name is none.
        PoclabError: it cannot be done; nothing was, but for versions that were made before one
            failed, which the same command again takes up.
    """
    check_name("lab", request.lab)
    check_mark(request.name)
    with recovery.locked(host, request.lab, f"poclab mark {request.lab}") as lab:
        return _Marking(lab, request).run()


def check_mark(text: str) -> str:
    """Return the text when it can name a mark.

    Raises:
        UsageError: it cannot.
    """
    if is_tag(text):
        return text
    raise UsageError(f"{shown(text)} is no name of a mark", why=f"such a name is {TAG_RULE}")


class _Marking:
    def __init__(self, lab: LabHost, request: MarkRequest) -> None:
        self._lab = lab
        self._host = lab.host
        self._store = lab.store
        self._request = request
        self._vms = find_lab(lab.host.vms(), request.lab)
        self._before = self._found()
        self._taken: set[Ref] = set()

    def run(self) -> Mark:
        self._check()
        found = self._before
        if found and found.vms and not self._request.force:
            if not self._request.commit and found.vms == self._as_they_are():
                events.note(f"{found} names these versions already")
                return found
            raise PoclabError(
                f"{self._request.lab} has a mark {found.name} already",
                why=f"{found.by} made it {found.created}, and a mark is never moved silently",
                fix="choose another name, or move it with --force",
            )
        return self._committed() if self._request.commit else self._named()

    # --- checks ----------------------------------------------------------------------------

    def _found(self) -> Mark | None:
        """The mark as it is; one that was cut short or damaged is made anew."""
        marks = Marks.of(self._host.pool, self._request.lab)
        try:
            return marks.find(self._request.lab, self._request.name)
        except PoclabError as error:
            if any(lost.newer for lost in marks.unreadable if lost.name == self._request.name):
                raise
            events.warning(f"{error.what}, and is made anew: {error.why}")
            return None

    def _check(self) -> None:
        lab, name = self._request.lab, self._request.name
        for image in sorted({ref.image for vm in self._vms for ref in _refs(vm.record)}):
            if self._store.has(Ref(image, name)):
                raise PoclabError(
                    f"{name} is a tag of {image}",
                    why=f"`reset {lab} --to {name}` would not say which of the two is meant",
                    fix="choose another name for the mark",
                )
        for vm in self._vms:
            if vm.live and vm.live.overlay != vm.record.overlay:
                raise PoclabError(
                    f"{vm.record.path} runs on a disk it is to leave",
                    why="a reset was interrupted",
                    fix=f"finish it first: poclab reset {vm.record.path}",
                )

    def _changed(self, record: VmRecord) -> bool:
        pool = self._host.pool
        if isinstance(pool, LocalPool):
            return is_written(Path(pool.path(record.overlay)))
        return written(pool, record.overlay) > 0

    # --- without commits -------------------------------------------------------------------

    def _as_they_are(self) -> tuple[Marked, ...]:
        return tuple(_marked(vm.record) for vm in self._vms)

    def _named(self) -> Mark:
        changed = [_told(vm.record) for vm in self._vms if self._changed(vm.record)]
        made = self._write(self._as_they_are())
        if changed:
            events.warning(
                f"{made} does not hold what {', '.join(changed)} wrote since their last reset or"
                " commit: with --commit it would"
            )
        return made

    def _write(self, vms: Iterable[Marked]) -> Mark:
        request = self._request
        made = Mark(
            request.lab, request.name, now(), paths.user_name(), request.message, tuple(vms)
        )
        with self._store.reading():
            for item in made.vms:
                self._see(item)
            events.step("mark", lab=request.lab, mark=request.name)
            self._host.pool.write(made.volume, encode(made))
        self._host.settle()
        return made

    def _see(self, item: Marked) -> None:
        """See that a version is there and is the one that a VM runs."""
        version = self._store.find(item.version)
        if version is None or version.digest != item.digest:
            how = "was made anew" if version else "is not there any more"
            raise PoclabError(
                f"{self._request.lab}/{item.vm} runs a version that cannot be marked",
                why=f"{item.version} {how}",
                fix="--commit makes a version of what it runs, or reset it to one first",
            )

    # --- with commits ----------------------------------------------------------------------

    def _committed(self) -> Mark:
        done = {vm.record.name: item for vm in self._vms if (item := self._done(vm.record))}
        todo = [vm for vm in self._vms if vm.record.name not in done and self._needs(vm.record)]
        pending = {vm.record.name: self._version(vm) for vm in todo}
        requests = {name: self._commit(ref) for name, ref in pending.items()}
        for vm in todo:
            commit.check(self._host, vm, requests[vm.record.name])
        self._check_room(todo)
        if todo:
            self._begin(todo, done, pending)
        for vm in todo:
            made = commit.commit_held(self._host, vm, requests[vm.record.name])
            events.note(f"{vm.record.path}: committed as {made.ref}")
            done[vm.record.name] = Marked(vm.record.name, made.ref, made.digest)
        self._lab.sweep()
        return self._write(done.get(vm.record.name, _marked(vm.record)) for vm in self._vms)

    def _done(self, record: VmRecord) -> Marked | None:
        """The version that this very command made of a VM before it was stopped."""
        plan = self._planned(record.name)
        version = self._store.find(plan.version) if plan else None
        if plan is None or version is None:
            return None
        made = (record.path, plan.overlay)
        origin = version.origin
        same = (record.version, record.digest) == (version.ref, version.digest)
        if not same or (origin.source, origin.inputs.get("overlay")) != made:
            return None
        events.note(
            f"{record.path}: {version.ref} was made for this before it was stopped,"
            f" {version.created}; it holds nothing of what came later"
        )
        return _marked(record)

    def _planned(self, vm: str) -> Pending | None:
        pending = self._before.pending if self._before else ()
        return next((item for item in pending if item.vm == vm), None)

    def _needs(self, record: VmRecord) -> bool:
        version = self._store.find(record.version)
        return version is None or version.digest != record.digest or self._changed(record)

    def _version(self, vm: ObservedVm) -> Ref:
        """A name for the version of a VM: the one that was begun, else a free one."""
        plan = self._planned(vm.record.name)
        if plan and commit.begun(self._host, vm, plan.version):
            return plan.version
        names, number = set(self._host.pool.names()), 1
        while True:
            ref = made_for(vm.record, self._request.name, number)
            if ref not in self._taken and manifest_volume(ref) not in names:
                self._taken.add(ref)
                return ref
            number += 1

    def _commit(self, ref: Ref) -> commit.CommitRequest:
        request = self._request
        message = request.message or f"for the mark {request.name} of {request.lab}"
        otherwise = "take the disk as after a power cut: --no-quiesce"
        return commit.CommitRequest(ref, message, quiesce=request.quiesce, otherwise=otherwise)

    def _check_room(self, todo: Sequence[ObservedVm]) -> None:
        needed = sum(commit.room(self._host, vm.record) for vm in todo)
        free = self._host.pool.free()
        if needed > free:
            raise PoclabError(
                "there is no room for the versions",
                why=f"{format_size(needed)} needed at most, {format_size(free)} free in the pool",
                fix="make room, for one with `poclab gc`, and run the same command again",
            )

    def _begin(
        self, todo: Sequence[ObservedVm], done: dict[str, Marked], pending: dict[str, Ref]
    ) -> None:
        """Write down what is being made; what is done already stays written down."""
        request = self._request
        there = self._before or Mark(
            request.lab, request.name, now(), paths.user_name(), request.message
        )
        kept = tuple(item for item in there.pending if item.vm in done)
        names = ((vm.record.name, vm.record.overlay) for vm in todo)
        new = tuple(Pending(name, pending[name], overlay) for name, overlay in names)
        events.step("mark", lab=request.lab, mark=request.name)
        self._host.pool.write(there.volume, encode(replace(there, pending=(*kept, *new))))


def made_for(record: VmRecord, mark: str, number: int = 1) -> Ref:
    """The name of a version that is made of a VM for a mark: IMAGE:MARK-VM, then IMAGE:MARK-VM-2.

    Raises:
        UsageError: that would be no tag.
    """
    tag = f"{mark}-{record.name}" + (f"-{number}" if number > 1 else "")
    if not is_tag(tag):
        raise UsageError(
            f"{shown(mark)} is too long for a mark with --commit",
            why=f"the version of {record.path} would be {shown(tag)}, and a tag is {TAG_RULE}",
        )
    return Ref(record.version.image, tag)


def _marked(record: VmRecord) -> Marked:
    return Marked(record.name, record.version, record.digest)


def _told(record: VmRecord) -> str:
    """A VM that was written to, with what it was switched to in place."""
    switched = record.runs != record.version
    return f"{record.name} (switched to {record.runs})" if switched else record.name


def _refs(record: VmRecord) -> tuple[Ref, Ref]:
    return record.version, record.wanted


# --- remove, list -----------------------------------------------------------------------------


def unmark(host: Host, lab: str, name: str) -> None:
    """Remove a mark, also one that is damaged; the versions it names stay.

    Raises:
        UsageError: a name is none.
        PoclabError: there is no such mark.
    """
    check_name("lab", lab)
    volume = mark_volume(lab, check_mark(name))
    with locks.hold(lab, uri=host.uri, doing=f"poclab unmark {lab}"):
        if volume not in host.pool.names():
            names = [item.name for item in Marks.of(host.pool, lab).marks]
            raise PoclabError(
                f"{lab} has no mark {name}",
                why=f"it has {', '.join(names) or 'none at all'}",
                fix="`poclab marks` lists them",
            )
        events.step("delete", volume=volume)
        host.pool.delete(volume)
    host.settle()


@dataclass(frozen=True)
class MarkRow:
    """A line of `poclab marks`; the fields are the JSON's keys.

    Attributes:
        lab: the lab.
        name: the mark.
        state: "whole"; "incomplete" while its versions are being made, or where that was stopped;
            "damaged", or "newer" where a newer poclab made it.
        created: when it was made or moved; empty when it cannot be read.
        by: who did it.
        message: a line about it.
        versions: the versions by VM.
        digests: their digests by VM.
    """

    lab: str
    name: str
    state: str
    created: str
    by: str
    message: str
    versions: dict[str, str]
    digests: dict[str, str]


def rows(host: Host, lab: str | None = None) -> list[MarkRow]:
    """The marks of a lab, or of all; what cannot be read is in warnings too.

    Raises:
        UsageError: the text is no lab name.
    """
    if lab is not None:
        check_name("lab", lab)
    found = Marks.of(host.pool, lab)
    for lost in found.unreadable:
        error = lost.error()
        events.warning(f"{error.what}: {error.why}; {error.fix}")
    lines = [
        MarkRow(
            item.lab,
            item.name,
            "incomplete" if item.pending else "whole",
            item.created,
            item.by,
            item.message,
            {each.vm: str(each.version) for each in item.vms},
            {each.vm: each.digest for each in item.vms},
        )
        for item in found.marks
    ]
    return lines + [
        MarkRow(item.lab, item.name, "newer" if item.newer else "damaged", "", "", "", {}, {})
        for item in found.unreadable
    ]
