"""Fixtures: real libvirt hosts (see tests/support/hosts.py); and who runs beside whom."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.support import hosts
from tests.support.endings import pytest_configure as pytest_configure
from tests.support.endings import pytest_testnodeready as pytest_testnodeready
from tests.support.hosts import Host

# How long a busy machine takes over an example says nothing about the code.
settings.register_profile("poclab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("poclab")

# Modules that use root's podman, of which a machine has one.
_ROOT_PODMAN = (
    "test_lab_system",
    "test_bib_standin",
    "test_builder_standins",
    "test_direct_build",
    "test_image_stops",
    "test_iso",
)
# What takes longest, so that with several workers none is left with one of these at the end.
_LONGEST = (
    *_ROOT_PODMAN,
    "test_stops",
    "test_live_commit",
    "test_warm",
    "test_debian",
    "test_commit",
    "test_full_disk",
    "test_switch",
)


class ByModule(LoadScopeScheduling):  # type: ignore[misc]
    """Has a module's tests in one worker, since they share a host (pytest-xdist)."""

    def _split_scope(self, nodeid: str) -> str:
        module = Path(nodeid.partition("::")[0]).stem
        return "podman" if module in _ROOT_PODMAN else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    """Say which tests go to which worker."""
    return ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest in front where there are several workers."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.stem not in _LONGEST)


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """Take back what poclab changes of its process, for tests that run it in this one."""
    umask = os.umask(0)
    os.umask(umask)
    handlers = {number: signal.getsignal(number) for number in (SIGINT, SIGTERM, SIGHUP)}
    yield
    os.umask(umask)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def module_session() -> Iterator[Host]:
    """A qemu:///session for the tests of one module; empty again at its end."""
    with hosts.session() as host:
        yield from _left_empty(host)


@pytest.fixture
def session_host(module_session: Host) -> Iterator[Host]:
    """The module's session, with a check that the test leaves no domain behind."""
    yield from _left_as_found(module_session)


@pytest.fixture(scope="module")
def module_system() -> Iterator[tuple[Host, Host]]:
    """A qemu:///system without an uplink for one module, as root and as a member."""
    with hosts.system() as (root, member):
        for _ in _left_empty(root):
            yield root, member


@pytest.fixture
def system_host(module_system: tuple[Host, Host]) -> Iterator[Host]:
    """The module's system as root, with a check that the test leaves nothing behind."""
    yield from _left_as_found(module_system[0])


@pytest.fixture
def libvirt_member(module_system: tuple[Host, Host]) -> Iterator[Host]:
    """The same system as an ordinary user in group libvirt, with the same check."""
    yield from _left_as_found(module_system[1])


def _left_empty(host: Host) -> Iterator[Host]:
    yield host
    _compare(host, set(), set())


def _left_as_found(host: Host) -> Iterator[Host]:
    domains, networks = host.domains(), host.networks()
    yield host
    _compare(host, domains, networks)


def _compare(host: Host, domains: set[str], networks: set[str]) -> None:
    """Take away what a test left, so that the next is not misled, and say so."""
    left_domains, left_networks = host.domains() - domains, host.networks() - networks
    for name in left_domains:
        host.remove_domain(name)
    for name in left_networks:
        host.remove_network(name)
    assert not left_domains, f"left behind: domains {sorted(left_domains)}"
    assert not left_networks, f"left behind: networks {sorted(left_networks)}"
