"""The segments between guests of qemu:///session: on loopback alone, and one a lab.

The session runs in a network namespace of the test, beside a card that counts what is sent on
it. A frame that left QEMU by the default route would be counted there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import accounts, shop
from tests.support.accounts import as_root
from tests.support.hosts import Host
from tests.support.onelab import OneLab, one_lab, up_together

pytestmark = pytest.mark.guest

PORT = 18081  # of the namespace, so always free

# A pair of cards stands for the office network: both ends are in the namespace, the default
# route, and so every multicast packet that is not bound to loopback, goes out of the first.
SET_UP = """
ip link set lo up
ip link add office type veth peer name street
ip link set office up
ip link set street up
ip address add 192.0.2.10/24 dev office
ip route add default via 192.0.2.1
echo ready
exec cat
"""
COUNT = """
chain out { type filter hook output priority 0;
    oifname "lo" ip daddr 224.0.0.0/4 udp dport 32768-49151 counter comment "loopback"
    oifname != "lo" ip daddr 224.0.0.0/4 udp dport 32768-49151 counter comment "left"
}
"""


@contextmanager
def namespace() -> Iterator[tuple[str, ...]]:
    """A network namespace; gives the command prefix that enters it."""
    holder = subprocess.Popen(
        [*as_root(), "unshare", "--net", "sh", "-c", f"echo $$\n{SET_UP}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdin
    assert holder.stdout
    try:
        pid = holder.stdout.readline().strip()
        assert holder.stdout.readline().strip() == "ready"
        yield (*as_root(), "nsenter", "--net", f"--target={pid}")
    finally:
        holder.stdin.close()
        holder.wait(30)
        holder.stdout.close()


@pytest.fixture(scope="module")
def office() -> Iterator[tuple[Host, Host]]:
    """A session in that namespace, and root in there to count packets."""
    connect = dict.fromkeys(("POCLAB_CONNECT", "LIBVIRT_DEFAULT_URI"), "qemu:///session")
    with (
        namespace() as enter,
        accounts.place(accounts.ordinary(), connect, enter) as place,
        accounts.place(accounts.root(), connect, enter) as root,
    ):
        host = Host("qemu:///session", place)
        shop.give(host, ["v1"])
        yield host, Host("qemu:///session", root)


@pytest.fixture(scope="module")
def two(office: tuple[Host, Host]) -> Iterator[tuple[OneLab, OneLab]]:
    """Two labs with the same addresses: two VMs and one."""
    with one_lab(office[0]) as first, one_lab(office[0]) as second:
        lan = "lan: {{mode: {}, cidr: 10.77.6.0/24}}"
        near = "a: {image: 'shop:v1', networks: [{name: lan, ip: 10.77.6.10}]}"
        peer = "b: {image: 'shop:v1', networks: [{name: lan, ip: 10.77.6.11}],"
        peer += f" ports: ['{PORT}:80']}}"
        far = "c: {image: 'shop:v1', networks: [{name: lan, ip: 10.77.6.12}]}"
        first.write(near, peer, networks=lan.format("isolated"), defaults=shop.DEFAULTS)
        second.write(far, networks=lan.format("nat"), defaults=shop.DEFAULTS)
        up_together(first, second)
        yield first, second


def test_guests_reach_each_other_and_no_packet_leaves_loopback(
    office: tuple[Host, Host], two: tuple[OneLab, OneLab]
) -> None:
    host, root = office
    shop.count(root, "segments", COUNT)
    assert shop.pings(host, f"{two[0].name}/a", "10.77.6.11", count=5)
    # A ping and its answer, five times; each guest's QEMU sends its own.
    assert shop.counter(root, "loopback") >= 10
    assert shop.counter(root, "left") == 0
    # The count is worth something: a packet that is not bound to loopback is seen.
    send = "import socket; socket.socket(2, 2).sendto(b'x', ('239.1.2.3', 40000))"
    root.run(root.place.installation.python, "-c", send)
    assert shop.counter(root, "left") == 1


def test_guests_of_another_lab_hear_nothing_on_the_same_addresses(
    office: tuple[Host, Host], two: tuple[OneLab, OneLab]
) -> None:
    first, second = two
    listener = f"{second.name}/c"

    def received() -> int:
        seen = shop.ssh(office[0], listener, "cat /sys/class/net/eth1/statistics/rx_packets")
        return int(seen)

    address = shop.ssh(office[0], listener, "ip", "-o", "address", "show", "eth1")
    assert "10.77.6.12/24" in address
    before = received()
    assert not shop.pings(office[0], f"{first.name}/a", "10.77.6.12", count=3)
    assert received() == before
    # Its own lab's neighbour asks for addresses aloud, and is heard there.
    assert shop.pings(office[0], f"{first.name}/a", "10.77.6.11")


def test_an_isolated_lab_has_no_way_out_and_another_has(
    office: tuple[Host, Host], two: tuple[OneLab, OneLab]
) -> None:
    # 10.0.2.2 is what QEMU's user network calls this machine's loopback; the page is b's.
    fetch = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 10.0.2.2 {PORT}"
    assert "shop v1" in shop.ssh(office[0], f"{two[1].name}/c", fetch)
    done = office[0].poclab("ssh", f"{two[0].name}/a", fetch, check=False)
    assert (done.returncode, done.stdout) == (1, "")
