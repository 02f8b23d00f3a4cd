"""What single texts of lab and image files mean.

Each reader takes what was written and returns its value, or raises ValueError with a message
for the one who wrote it. Nothing here knows where the text stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import TypeVar

from poclab.core import units
from poclab.core.errors import UsageError
from poclab.core.plaintext import shown
from poclab.model import names
from poclab.model.lab import Forward
from poclab.model.version import Ref
from poclab.schema.yaml_source import Scalar

T = TypeVar("T")

USER_PATTERN = r"[a-z_][a-z0-9_-]{0,31}"
CIDR_PATTERN = r"([0-9]{1,3}\.){3}[0-9]{1,3}/([89]|1[0-9]|2[0-9])"
IP_PATTERN = r"([0-9]{1,3}\.){3}[0-9]{1,3}"
MAC_PATTERN = r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}"
IMAGE_PATTERN = f"{names.NAME_PATTERN}:{names.TAG_PATTERN}"
# Deliberately wider than the OCI grammar, which the container tools check themselves; what
# counts here is that it is one word and no option.
REFERENCE_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9._:/@+-]{0,511}"
VARIABLE_PATTERN = r"[a-zA-Z_][a-zA-Z0-9_]{0,127}"
PORTS_PATTERN = r"[0-9]{4,5}:[0-9]{1,5}"

# Where no lab network can be: this network, loopback, link-local, multicast, reserved
# (RFC 6890, RFC 5771).
_TAKEN = tuple(
    (IPv4Network(cidr), use)
    for cidr, use in (
        ("0.0.0.0/8", "this host"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved use"),
    )
)

# Beyond this a suggestion cannot be near, and difflib would be slow.
_MAX_WORD = 64
_MAX_LISTED = 12

# virtio-blk hands the guest a serial number of 20 bytes (VIRTIO_BLK_T_GET_ID, virtio 1.2,
# 5.2.6); a longer name would arrive cut off.
MAX_DISK_NAME = 20


# --- texts ------------------------------------------------------------------------------


def scalar(value: object) -> Scalar:
    """The value as a text.

    Raises:
        ValueError: nothing was written, or no text.
    """
    if isinstance(value, Scalar):
        if value.empty:
            raise ValueError("has no value")
        return value
    raise ValueError(f"must be one value, not a {'mapping' if isinstance(value, dict) else 'list'}")


def text(value: Scalar) -> str:
    """Any text."""
    return value.text


def reference(value: Scalar) -> str:
    """A container image's name, such as `quay.io/fedora/fedora-bootc:43`."""
    if re.fullmatch(REFERENCE_PATTERN, value.text):
        return value.text
    raise ValueError(f"{shown(value.text)} is no name of a container image")


def argument(value: Scalar) -> str:
    """One argument, without white space."""
    if not value.text or not value.text.isprintable() or re.search(r"\s", value.text):
        raise ValueError(f"must be one argument without white space, not {shown(value.text)}")
    return value.text


def variable(value: Scalar) -> str:
    """The name of a build argument."""
    if re.fullmatch(VARIABLE_PATTERN, value.text):
        return value.text
    raise ValueError(f"{shown(value.text)} is no name of a build argument")


def beside(value: Scalar) -> str:
    """The name of a file in the same directory or below it."""
    parts = value.text.split("/")
    if not value.text.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"must be a file in the image's directory, not {shown(value.text)}")
    return value.text


def line(value: Scalar) -> str:
    """A text of one line that is not empty."""
    if not value.text.strip() or not value.text.isprintable():
        raise ValueError("must be one line of text")
    return value.text


def name(kind: str) -> Callable[[Scalar], str]:
    """A name; `kind` is what it names."""

    def read(value: Scalar) -> str:
        return usage(lambda: names.check_name(kind, value.text))

    return read


def usage(check: Callable[[], T]) -> T:
    """Run a check; its UsageError becomes a ValueError of one line."""
    try:
        return check()
    except UsageError as error:
        raise ValueError("; ".join(filter(None, (error.what, error.why, error.fix)))) from error


def whole(low: int, high: int, what: str = "a whole number") -> Callable[[Scalar], int]:
    """A plain decimal number within limits."""

    def read(value: Scalar) -> int:
        number = int(value.text) if re.fullmatch(r"0|[1-9][0-9]{0,11}", value.text) else None
        if number is None or not value.plain or not low <= number <= high:
            quoted = ", without quotes" if number is not None and not value.plain else ""
            raise ValueError(
                f"must be {what} from {low} to {high}{quoted}, not {shown(value.text)}"
            )
        return number

    return read


def flag(value: Scalar) -> bool:
    """`true` or `false`."""
    if value.plain and value.text in ("true", "false"):
        return value.text == "true"
    raise ValueError(f"must be true or false, not {shown(value.text)}")


def only_true(value: Scalar) -> bool:
    """`true`, for what is chosen by naming it."""
    if value.plain and value.text == "true":
        return True
    raise ValueError(f"must be true, not {shown(value.text)}; leave the key out otherwise")


def size(low: int, high: int) -> Callable[[Scalar], int]:
    """A size in bytes within limits, rounded up to a whole MiB.

    Rounded, because QEMU and libvirt round too, and what is asked for must compare equal
    with what is found.
    """

    def read(value: Scalar) -> int:
        try:
            wanted = units.parse_size(value.text)
        except ValueError as error:
            raise ValueError(f"{shown(value.text)} is no size: {error}") from error
        if not low <= wanted <= high:
            limits = f"{units.format_size(low)} to {units.format_size(high)}"
            raise ValueError(f"must be a size from {limits}, not {shown(value.text)}")
        return -(-wanted // units.MIB) * units.MIB

    return read


def duration(value: Scalar) -> int:
    """Seconds, or a number with s, m or h; at most a day."""
    match = re.fullmatch(r"([0-9]{1,5})([smh]?)", value.text)
    seconds = int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0
    if not 1 <= seconds <= 86400:
        raise ValueError(f"must be 1 to 86400 seconds, or such as 5m, not {shown(value.text)}")
    return seconds


def one_of(*choices: str) -> Callable[[Scalar], str]:
    """One of some words."""

    def read(value: Scalar) -> str:
        if value.text in choices:
            return value.text
        near = nearest(value.text, choices)
        listed = ", ".join(choices)
        raise ValueError(f"must be one of {listed}, not {shown(value.text)}{near}")

    return read


def user(value: Scalar) -> str:
    """A user's name."""
    if re.fullmatch(USER_PATTERN, value.text):
        return value.text
    rule = "a-z, 0-9, _ and -, beginning with a letter or _, 32 characters at most"
    raise ValueError(f"{shown(value.text)} is no user name; one is {rule}")


def disk_name(value: Scalar) -> str:
    """The name of a data disk, which is also its serial number in the guest."""
    found = name("disk")(value)
    if len(found) > MAX_DISK_NAME:
        raise ValueError(
            f"a disk name is {MAX_DISK_NAME} characters at most, the length of a serial number"
        )
    return found


def image(value: Scalar) -> Ref:
    """`IMAGE:TAG`."""
    return usage(lambda: Ref.parse(value.text))


def cidr(value: Scalar) -> IPv4Network:
    """The addresses of a network, /8 to /29, host bits clear."""
    bad = f"{shown(value.text)} is no IPv4 network; one is such as 10.77.1.0/24"
    if not re.fullmatch(r"[0-9.]{7,15}/[0-9]{1,2}", value.text):
        raise ValueError(bad)
    try:
        network = IPv4Network(value.text, strict=False)
    except ValueError as error:
        raise ValueError(bad) from error
    if not 8 <= network.prefixlen <= 29:
        raise ValueError(f"must be a /8 to a /29, not a /{network.prefixlen}")
    for taken, use in _TAKEN:
        if network.overlaps(taken):
            raise ValueError(f"{value.text} overlaps {taken}, which is for {use}")
    if str(network) != value.text:
        raise ValueError(f"{value.text} has host bits set; did you mean {network}?")
    return network


def ip(value: Scalar) -> IPv4Address:
    """An IPv4 address."""
    try:
        return IPv4Address(value.text)
    except AddressValueError as error:
        raise ValueError(f"{shown(value.text)} is no IPv4 address") from error


def mac(value: Scalar) -> str:
    """A unicast MAC address, in lower case."""
    found = value.text.lower()
    if not re.fullmatch(MAC_PATTERN, found):
        raise ValueError(f"{shown(value.text)} is no MAC address; one is such as 52:54:00:12:34:56")
    if int(found[:2], 16) & 1:
        raise ValueError(f"{found} is a multicast address; the first byte must be even")
    # libvirt keeps addresses that begin with fe for its own side of a tap device.
    if found.startswith("fe:") or found == "00:00:00:00:00:00":
        raise ValueError(f"{found} is reserved; addresses for VMs begin with 52:54:00")
    return found


def forward(value: Scalar) -> Forward:
    """`HOST:GUEST`, two ports."""
    match = re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", value.text)
    if match is None:
        raise ValueError(f"must be HOST:GUEST, such as 8080:80, not {shown(value.text)}")
    host, guest = int(match[1]), int(match[2])
    if not 1024 <= host <= 65535:
        raise ValueError(f"the port of the host must be 1024 to 65535, not {host}")
    if not 1 <= guest <= 65535:
        raise ValueError(f"the port of the guest must be 1 to 65535, not {guest}")
    return Forward(host, guest)


# --- suggestions ------------------------------------------------------------------------


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'memory'?`, or an empty string when nothing is near."""
    if len(word) > _MAX_WORD:
        return ""
    near = get_close_matches(word.lower(), known, 1, 0.6)
    return f"; did you mean {shown(near[0])}?" if near else ""


def unknown(what: str, word: str, known: Sequence[str], *, suggest: bool = True) -> str:
    """Tell that a word is none of the known ones, and which was meant or which there are.

    Args:
        what: what it should be ("key", "VM").
        word: what was written.
        known: what there is.
        suggest: whether to look for the nearest; it costs time.
    """
    near = nearest(word, known) if suggest else ""
    if not near and known:
        more = ", ..." if len(known) > _MAX_LISTED else ""
        near = f"; known: {', '.join(map(shown_plain, known[:_MAX_LISTED]))}{more}"
    return f"unknown {what} {shown(word)}{near}"


def shown_plain(word: str) -> str:
    """A word as it may be printed, without quotes where it needs none."""
    quoted = shown(word)
    return quoted[1:-1] if quoted == f"'{word}'" else quoted
