"""Ports on 127.0.0.1: what the file asks for, and one for SSH that stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core.errors import UsageError
from poclab.model.host import ObservedVm
from poclab.model.lab import Forward, Lab, Ready
from poclab.model.record import VmRecord
from poclab.planning.ports import FIRST, LAST, PortBook, first_port
from tests.support import make

# The first ports that lab acme is given in a pool without a directory.
P0, P1, P2 = range(first_port("", "acme"), first_port("", "acme") + 3)
SSH = Forward(P0, 22)


class Listening:
    """A host where programs listen on some ports."""

    def __init__(self, *ports: int) -> None:
        self.ports = set(ports)
        self.asked: list[int] = []

    def __call__(self, port: int) -> bool:
        """Whether nothing listens there."""
        self.asked.append(port)
        return port not in self.ports


def book(
    wanted: Lab, *vms: ObservedVm, listening: Listening | None = None, pool: str = ""
) -> tuple[list[tuple[Forward, ...]], list[str]]:
    """The ports of every VM of a lab, and the problems."""
    existing = {vm.record.name: vm for vm in vms if vm.record.lab == wanted.name}
    found = PortBook(wanted, vms, existing, listening or Listening(), pool)
    return [found.of(vm) for vm in wanted.vms], found.problems


def forwarding(*forwards: Forward, name: str = "vm1", lab: str = "acme") -> VmRecord:
    """A VM with ports."""
    return make.record(name, lab, forwards=forwards)


def test_every_vm_gets_a_port_for_ssh() -> None:
    ports, problems = book(make.lab(make.vm("a"), make.vm("b")))
    assert ports == [(Forward(P0, 22),), (Forward(P1, 22),)]
    assert problems == []


@given(st.text(), st.text(), st.integers(1, 4))
def test_ports_are_of_the_range_and_the_same_each_time(pool: str, name: str, count: int) -> None:
    wanted = make.lab(*(make.vm(f"vm{n}") for n in range(count)), name=name)
    ports, problems = book(wanted, pool=pool)
    given_ = [forward.host for forwards in ports for forward in forwards]
    assert given_[0] == first_port(pool, name)
    assert len(set(given_)) == count
    assert all(FIRST <= port <= LAST for port in given_)
    assert book(wanted, pool=pool) == (ports, problems)


def test_sessions_and_labs_begin_at_different_ports() -> None:
    pools = [f"/home/user{n}/.local/share/poclab/pool" for n in range(30)]
    begins = {first_port(pool, lab) // 10 for pool in pools for lab in ("demo", "acme")}
    # Sixty of 800 tens: chance alone makes two of them meet two or three times.
    assert len(begins) > 50


def test_after_the_last_port_the_first_ones_are_given() -> None:
    pool = next(name for name in map(str, range(10**6)) if first_port(name, "acme") == LAST)
    ports, _ = book(make.lab(make.vm("a"), make.vm("b"), make.vm("c")), pool=pool)
    assert [forward.host for (forward,) in ports] == [LAST, FIRST, FIRST + 1]


def test_asked_ports_come_with_it() -> None:
    ports, problems = book(make.lab(make.vm(ports=(Forward(8080, 80),))))
    assert ports == [(Forward(8080, 80), SSH)]
    assert problems == []


def test_who_asks_for_ssh_gets_no_second_port() -> None:
    ports, _ = book(make.lab(make.vm(ports=(Forward(2222, 22),))))
    assert ports == [(Forward(2222, 22),)]


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        (Ready("tcp", 443), (SSH, Forward(P1, 443))),
        (Ready("tcp", 22), (SSH,)),
        (Ready("ssh"), (SSH,)),
        (Ready("agent"), (SSH,)),
    ],
    ids=["tcp", "tcp 22", "ssh", "agent"],
)
def test_the_port_that_is_waited_for_is_forwarded(
    ready: Ready, expected: tuple[Forward, ...]
) -> None:
    ports, _ = book(make.lab(make.vm(ready=ready)))
    assert ports == [expected]


def test_a_port_that_is_waited_for_and_asked_for_is_forwarded_once() -> None:
    wanted = make.lab(make.vm(ports=(Forward(8443, 443),), ready=Ready("tcp", 443)))
    assert book(wanted)[0] == [(Forward(8443, 443), SSH)]


def test_a_reserved_port_is_used_again() -> None:
    record = forwarding(Forward(23456, 22))
    for vm in (make.off(record), make.observed_vm(record)):
        assert book(make.lab(make.vm()), vm)[0] == [(Forward(23456, 22),)]


def test_what_the_vm_itself_listens_on_is_not_taken() -> None:
    record = forwarding(Forward(8080, 80), SSH)
    wanted = make.lab(make.vm(ports=(Forward(8080, 80),)))
    ports, problems = book(wanted, make.observed_vm(record), listening=Listening(8080, P0))
    assert ports == [(Forward(8080, 80), SSH)]
    assert problems == []


def test_a_port_can_move_to_another_vm_of_the_lab() -> None:
    record = forwarding(Forward(8080, 80), SSH, name="a")
    wanted = make.lab(make.vm("a"), make.vm("b", ports=(Forward(8080, 80),)))
    ports, problems = book(wanted, make.observed_vm(record), listening=Listening(8080, P0))
    assert problems == []
    assert ports == [(SSH,), (Forward(8080, 80), Forward(P1, 22))]


def test_a_reserved_port_that_another_program_took_is_given_up() -> None:
    ports, problems = book(make.lab(make.vm()), make.off(forwarding(SSH)), listening=Listening(P0))
    assert ports == [(Forward(P1, 22),)]
    assert problems == []


def test_ports_of_other_labs_are_theirs_even_when_they_do_not_run() -> None:
    other = make.off(forwarding(SSH, Forward(8080, 80), lab="other"))
    wanted = make.lab(make.vm(ports=(Forward(8080, 80),)))
    ports, problems = book(wanted, other)
    assert problems == ["vm1: port 8080 of this host is other/vm1's"]
    assert ports == [(Forward(8080, 80), Forward(P1, 22))]


def test_a_port_that_another_program_listens_on_is_refused() -> None:
    wanted = make.lab(make.vm(ports=(Forward(8080, 80),)))
    _, problems = book(wanted, listening=Listening(8080))
    assert problems == ["vm1: another program listens on port 8080 of this host"]


def test_ports_of_removed_vms_are_not_given_in_the_same_go() -> None:
    ports, _ = book(make.lab(make.vm("b")), make.observed_vm(forwarding(SSH, name="a")))
    assert ports == [(Forward(P1, 22),)]


def test_a_reserved_port_that_the_file_now_asks_for_elsewhere_is_given_up() -> None:
    vms = [make.vm("a"), make.vm("b", ports=(Forward(P0, 80),))]
    ports, problems = book(make.lab(*vms), make.off(forwarding(SSH, name="a")))
    assert ports == [(Forward(P1, 22),), (Forward(P0, 80), Forward(P2, 22))]
    assert problems == []


def test_a_port_is_looked_at_only_when_it_is_wanted() -> None:
    listening = Listening(P0, P1)
    ports, _ = book(make.lab(make.vm()), listening=listening)
    assert ports == [(Forward(P2, 22),)]
    assert listening.asked == [P0, P1, P2]


def test_when_no_port_is_left_that_is_said() -> None:
    listening = Listening(*range(FIRST, LAST + 1))
    with pytest.raises(UsageError, match="no port is left") as caught:
        book(make.lab(make.vm()), listening=listening)
    assert caught.value.fix
