"""From what a user types to VMs: `vm1`, `customer-a/vm1`, a whole lab."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import shown
from poclab.model.host import ObservedVm
from poclab.model.names import check_name, is_name


@dataclass(frozen=True)
class Target:
    """A VM that a command is for.

    Attributes:
        vm: the VM.
        named: whether it was named itself, and not only as one of its lab.
    """

    vm: ObservedVm
    named: bool = True

    @property
    def path(self) -> str:
        """`LAB/VM`."""
        return self.vm.record.path


def find_targets(
    vms: Sequence[ObservedVm], names: Iterable[str], lab: str | None = None
) -> list[Target]:
    """The VMs that names mean, each once: of VMs, as `VM` or `LAB/VM`, and of labs.

    Args:
        vms: all VMs.
        names: what was typed.
        lab: the lab that bare names are in, where the command line says so.

    Raises:
        UsageError: a name means nothing, or several things.
        PoclabError: there is nothing of that name.
    """
    found: dict[str, Target] = {}
    labs = {vm.record.lab for vm in vms}
    for name in names:
        if lab is None and name in labs:
            _refuse_both(vms, name)
            for each in whole(find_lab(vms, name)):
                found.setdefault(each.path, each)
        else:
            known = {vm.record.name for vm in vms}
            if lab is None and is_name(name) and name not in known:
                raise _unknown(vms, name, labs)
            one = Target(find_vm(vms, name, lab))
            found[one.path] = one
    return list(found.values())


def whole(vms: Iterable[ObservedVm]) -> list[Target]:
    """The VMs of whole labs."""
    return [Target(vm, named=False) for vm in vms]


def _refuse_both(vms: Sequence[ObservedVm], name: str) -> None:
    paths = [vm.record.path for vm in vms if vm.record.name == name]
    if paths:
        raise UsageError(
            f"{name} is a lab, and a VM too",
            why=f"there are lab {name} and {', '.join(paths)}",
            fix=f"write {paths[0]} for the VM, --lab {name} --all for the lab",
        )


def find_vm(vms: Sequence[ObservedVm], text: str, lab: str | None = None) -> ObservedVm:
    """The one VM that a name means.

    Args:
        vms: all VMs.
        text: `VM` or `LAB/VM`.
        lab: the lab it must be in, where the command line names one.

    Raises:
        UsageError: the text names no VM, or several.
        PoclabError: there is no such VM.
    """
    head, slash, tail = text.partition("/")
    where, name = (head, tail) if slash else (lab, text)
    if where is not None:
        check_name("lab", where)
    check_name("VM", name)
    if lab is not None and where != lab:
        raise UsageError(f"{shown(text)} is not in lab {lab}")
    found = [vm for vm in vms if vm.record.name == name and where in (None, vm.record.lab)]
    if len(found) == 1:
        return found[0]
    if found:
        paths = ", ".join(vm.record.path for vm in found)
        raise UsageError(f"{name} is in several labs", why=paths, fix="write LAB/VM")
    raise _unknown(vms, name if where is None else f"{where}/{name}")


def find_lab(vms: Iterable[ObservedVm], lab: str) -> list[ObservedVm]:
    """The VMs of a lab.

    Raises:
        UsageError: the text is no lab name.
        PoclabError: the lab has no VM on this host.
    """
    check_name("lab", lab)
    vms = list(vms)
    found = [vm for vm in vms if vm.record.lab == lab]
    if not found:
        labs = sorted({vm.record.lab for vm in vms})
        why = f"there are {', '.join(labs)}" if labs else "no lab is up on this host"
        raise PoclabError(f"lab {lab} is not up", why=why, fix=f"`poclab up {lab}`")
    return found


def _unknown(
    vms: Sequence[ObservedVm], text: str, labs: Iterable[str] | None = None
) -> PoclabError:
    """That there is nothing of a name; `labs` where it might have been one."""
    what = f"there is no VM {'or lab ' if labs is not None else ''}{shown(text)}"
    names = [*(vm.record.path for vm in vms), *(labs or ())]
    if "/" not in text:
        names += [vm.record.name for vm in vms]
    from difflib import get_close_matches

    paths = ", ".join(vm.record.path for vm in vms[:10])
    why = f"there are {paths}" if paths else "no lab is up on this host"
    near = get_close_matches(text, names, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return PoclabError(what, why=why, fix=f"{meant}`poclab status` lists them")
