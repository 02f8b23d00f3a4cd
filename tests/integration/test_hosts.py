"""The hosts that the other tests use are what they say: real, private, and gone afterwards."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from tests.support import accounts, hosts
from tests.support.hosts import Host

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <serial type='pty'><log file='{log}'/></serial>
    {interface}
  </devices>
</domain>
"""

NETWORK = """
<network>
  <name>hosts-lan</name>
  <forward mode='nat'/>
  <bridge name='vhosts0'/>
  <ip address='10.77.250.1' prefix='24'>
    <dhcp><range start='10.77.250.10' end='10.77.250.20'/></dhcp>
  </ip>
</network>
"""


def start_guest(host: Host, name: str, interface: str = "") -> None:
    log = f"{host.scratch}/{name}.log" if "session" in host.uri else f"/var/log/libvirt/{name}.log"
    xml = host.write(f"{name}.xml", DOMAIN.format(name=name, interface=interface, log=log))
    host.virsh("define", "--validate", str(xml))
    host.virsh("start", name)


def uid_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def guests(host: Host) -> list[int]:
    found = accounts.processes(host.place.root)
    return [pid for pid, name in found.items() if name.startswith("qemu-system")]


def test_a_session_needs_no_root(session_host: Host) -> None:
    start_guest(session_host, "hosts-session")
    assert session_host.virsh("domstate", "hosts-session").strip() == "running"
    assert session_host.account.uid != 0
    pids = [*session_host.daemons(), *guests(session_host)]
    assert len(pids) == 2
    assert {uid_of(pid) for pid in pids} == {session_host.account.uid}
    session_host.remove_domain("hosts-session")
    assert session_host.domains() == set()


def test_a_session_ends_with_its_guests() -> None:
    with hosts.session() as host:
        start_guest(host, "hosts-left")
        root = host.place.root
        assert accounts.processes(root)
    assert accounts.processes(root) == {}
    assert not root.exists()


def test_sockets_fit_into_a_session(session_host: Host) -> None:
    # The longest path libvirt makes: 20 characters of the domain's name are in it.
    path = (
        f"{session_host.env['XDG_CONFIG_HOME']}/libvirt/qemu/lib/domain-99-{'x' * 20}/monitor.sock"
    )
    assert len(path) < 100


def test_libvirtd_can_be_restarted(session_host: Host) -> None:
    session_host.virsh("uri")
    before = session_host.daemons()
    session_host.restart_daemon()
    after = session_host.daemons()
    assert len(before) == len(after) == 1
    assert before != after


def test_poclab_runs_as_the_account(session_host: Host) -> None:
    done = session_host.poclab("--version")
    assert done.stdout.startswith("poclab ")
    code = "import os, poclab; print(os.getuid())"
    seen = session_host.run(session_host.place.installation.python, "-c", code).stdout
    assert int(seen) == session_host.account.uid


def test_a_system_with_network_and_guest(system_host: Host) -> None:
    xml = system_host.write("lan.xml", NETWORK)
    system_host.virsh("net-define", "--validate", str(xml))
    system_host.virsh("net-start", "hosts-lan")
    addresses = system_host.run("ip", "-brief", "address").stdout
    assert "10.77.250.1/24" in addresses
    assert "dnsmasq" in hosts._inside(system_host.place).values()
    start_guest(
        system_host,
        "hosts-nat",
        "<interface type='network'><source network='hosts-lan'/></interface>",
    )
    assert system_host.virsh("domstate", "hosts-nat").strip() == "running"
    system_host.remove_domain("hosts-nat")
    system_host.remove_network("hosts-lan")
    assert "10.77.250.1" not in system_host.run("ip", "-brief", "address").stdout


def test_a_system_has_no_uplink(system_host: Host) -> None:
    assert system_host.run("ip", "route").stdout == ""
    links = system_host.run("ip", "-brief", "link").stdout.splitlines()
    uplinks = {name for _, name in socket.if_nameindex()} - {"lo"}
    assert {line.split()[0] for line in links}.isdisjoint(uplinks)
    # TEST-NET-1 is nobody's; the kernel refuses before a packet is made.
    connect = "import socket; socket.create_connection(('192.0.2.1', 9), 2)"
    refused = system_host.run(system_host.place.installation.python, "-c", connect, check=False)
    assert "Network is unreachable" in refused.stderr


def test_a_member_of_group_libvirt_sees_the_system(system_host: Host, libvirt_member: Host) -> None:
    assert libvirt_member.account.uid != 0
    start_guest(libvirt_member, "hosts-member")
    assert "hosts-member" in system_host.domains()
    assert int(libvirt_member.run("id", "-u").stdout) == libvirt_member.account.uid
    # The directory of disks is not theirs: all must go through libvirt.
    denied = libvirt_member.run("touch", "/var/lib/libvirt/images/x", check=False)
    assert denied.returncode != 0
    libvirt_member.remove_domain("hosts-member")


def test_an_outsider_does_not(module_system: tuple[Host, Host]) -> None:
    enter = module_system[0].place.enter
    uri = {"LIBVIRT_DEFAULT_URI": "qemu:///system"}
    with accounts.place(accounts.ordinary(), uri, enter) as place:
        done = Host("qemu:///system", place).run("virsh", "list", check=False)
    if os.getuid() == 0:
        assert done.returncode != 0
        assert "ermission denied" in done.stderr


def test_libvirtd_of_a_system_can_be_restarted(system_host: Host) -> None:
    before = system_host.daemons()
    system_host.restart_daemon()
    assert len(before) == 1
    assert system_host.daemons() != before


def test_the_machines_own_libvirt_is_not_touched(system_host: Host) -> None:
    places = [Path(top) / "libvirt" for top in ("/run", "/etc", "/var/lib", "/var/log")]

    def outside() -> list[str]:
        return sorted(str(path) for top in places for path in top.rglob("*"))

    before = outside()
    start_guest(system_host, "hosts-hidden")
    inside = system_host.run("ls", "/etc/libvirt/qemu", "/run/libvirt/qemu").stdout
    assert "hosts-hidden.xml" in inside
    assert "hosts-hidden.pid" in inside
    assert outside() == before
    system_host.remove_domain("hosts-hidden")


def test_a_command_is_stopped_between_steps(session_host: Host) -> None:
    disk = session_host.scratch / "tiny.qcow2"
    session_host.run("qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M")
    # The first makes the pool, which is a step as well.
    session_host.poclab("image", "import", "stop-first:v1", str(disk))
    whole = session_host.count_steps(["image", "import", "stop-whole:v1", str(disk)])
    assert whole.result.returncode == 0
    assert not whole.reached
    assert len(whole.steps) > 1

    killed = session_host.stop_at(["image", "import", "stop-killed:v1", str(disk)], 2)
    assert killed.reached
    assert killed.result.returncode == -signal.SIGKILL
    assert killed.steps == whole.steps[:2]

    command = ["image", "import", "stop-interrupted:v1", str(disk)]
    interrupted = session_host.stop_at(command, 2, "interrupt")
    assert interrupted.reached
    assert interrupted.result.returncode == 130

    full = session_host.stop_at(["image", "import", "stop-full:v1", str(disk)], 2, "enospc")
    assert full.reached
    assert full.result.returncode == 1

    beyond = session_host.stop_at(["image", "import", "stop-beyond:v1", str(disk)], 99)
    assert not beyond.reached
    assert beyond.result.returncode == 0


def test_doctor_lets_qemu_open_kvm(system_host: Host, libvirt_member: Host) -> None:
    if not Path("/dev/kvm").exists():  # a machine without: nothing is said of it
        assert "/dev/kvm" not in system_host.poclab("doctor", check=False).stdout
        return
    # The device of this host's own (see system-host), as a machine without udev has it.
    system_host.run("sh", "-c", "chgrp root /dev/kvm && chmod 600 /dev/kvm")
    said = system_host.poclab("doctor", check=False)
    (line,) = [line for line in said.stdout.splitlines() if line.startswith("/dev/kvm")]
    assert "missing" in line
    assert "may not open /dev/kvm (group root, mode 0600): run `sudo poclab doctor --fix`" in line
    assert "each step takes seconds more" in said.stderr
    refused = libvirt_member.poclab("doctor", "--fix", check=False)
    assert (refused.returncode, "cannot set group and mode" in refused.stderr) == (1, True)
    mended = system_host.poclab("doctor", "--fix", check=False)
    assert "gave /dev/kvm to group kvm" in mended.stderr
    assert system_host.run("stat", "-c", "%G %a", "/dev/kvm").stdout == "kvm 660\n"
    assert "nothing to repair" in system_host.poclab("doctor", "--fix", check=False).stderr
