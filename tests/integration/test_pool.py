"""Both ways to the storage pool keep one contract, on a real libvirt."""

from __future__ import annotations

import pytest

from tests.support.hosts import Host
from tests.support.pool_contract import CHECKS


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", ["local", "stream"])
def test_a_pool_keeps_the_contract(session_host: Host, kind: str, name: str) -> None:
    python = session_host.place.installation.python
    before = session_host.volumes()
    done = session_host.run(python, "-m", "tests.support.pool_contract", kind, name, check=False)
    assert done.returncode == 0, done.stderr
    assert session_host.volumes() - before <= {"poclab.json"}


def test_a_member_of_the_group_has_the_same_pool_without_writing_its_directory(
    libvirt_member: Host, system_host: Host
) -> None:
    python = libvirt_member.place.installation.python
    system_host.poclab("image", "ls")  # makes the pool, as root
    directory = system_host.virsh("pool-dumpxml", "poclab").partition("<path>")[2].split("<")[0]
    probe = libvirt_member.run("test", "-w", directory, check=False)
    assert probe.returncode == 1
    for name in (
        "small_volumes_come_back",
        "what_is_not_there_is_said",
        "an_adopted_file_is_used_up_and_read_only",
    ):
        run = libvirt_member.run(python, "-m", "tests.support.pool_contract", "stream", name)
        assert run.stderr == ""
    code = (
        "import os; from poclab.virt.host import connect\n"
        "with connect(os.environ['LIBVIRT_DEFAULT_URI'], 'tcg') as host:\n"
        "    print(type(host.pool).__name__)\n"
    )
    assert libvirt_member.run(python, "-c", code).stdout == "StreamPool\n"
    assert system_host.run(python, "-c", code).stdout == "LocalPool\n"
