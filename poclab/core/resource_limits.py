"""Resource limits of a command that is to be started.

They are set by prlimit(1), which becomes the command: what subprocess would run between fork and
exec for it may hang for ever beside other threads.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping

_OPTIONS = {
    resource.RLIMIT_AS: "as",
    resource.RLIMIT_CORE: "core",
    resource.RLIMIT_CPU: "cpu",
    resource.RLIMIT_DATA: "data",
    resource.RLIMIT_FSIZE: "fsize",
    resource.RLIMIT_NOFILE: "nofile",
    resource.RLIMIT_NPROC: "nproc",
    resource.RLIMIT_STACK: "stack",
}


def prefix(limits: Mapping[int, int]) -> list[str]:
    """What goes before a command that is to run under limits.

    Args:
        limits: `resource.RLIMIT_*` to a value, in that limit's unit; nobody but root could go
            beyond this process's own hard limit, so that holds where it is lower.
    """
    options = [f"--{_OPTIONS[number]}={_within(number, value)}" for number, value in limits.items()]
    return ["prlimit", *options] if options else []


def _within(number: int, value: int) -> int:
    hard = resource.getrlimit(number)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)
