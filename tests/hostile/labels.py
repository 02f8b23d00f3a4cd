"""Labels of container images made to spoil the manifest of whoever builds a disk of them.

An image's maker chooses names, lengths and number of its labels; podman takes them all.
"""

from __future__ import annotations

_OCI = "org.opencontainers.image."


def many(count: int = 5000) -> dict[str, str]:
    """More labels than any image has, the only one that says something among them."""
    return {f"{_OCI}{number:05}": "x" for number in range(count)} | {f"{_OCI}title": "Web"}


def long() -> dict[str, str]:
    """Names and values of any length, of the characters that JSON needs twelve bytes for."""
    wide = "\N{PILE OF POO}"
    values = {f"{_OCI}{number}": wide * 5000 for number in range(150)}
    return values | {f"{_OCI}{wide * 5000}": "x", f"{_OCI}title": "Web"}


def odd() -> dict[str, str]:
    """Names and values that are no text for a terminal, a file or UTF-8."""
    return {
        _OCI: "",
        f"{_OCI}\x1b[2J\n": "\x1b[31m\0",
        f"{_OCI}\ud800": "\udce9",
        f"{_OCI}title": "Web",
    }
