"""From what a user types to VMs: `vm1`, `customer-a/vm1`, a whole lab."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from poclab.errors import PoclabError, UsageError
from poclab.model import ObservedVm
from poclab.names import check_name, shown


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


def _unknown(vms: Sequence[ObservedVm], text: str) -> PoclabError:
    names = [vm.record.path for vm in vms]
    if "/" not in text:
        names += [vm.record.name for vm in vms]
    near = get_close_matches(text, names, n=1)
    if near:
        return PoclabError(f"there is no VM {shown(text)}", why=f"did you mean {near[0]}?")
    paths = ", ".join(vm.record.path for vm in vms[:10])
    why = f"there are {paths}" if paths else "no lab is up on this host"
    return PoclabError(f"there is no VM {shown(text)}", why=why, fix="`poclab status` lists them")
