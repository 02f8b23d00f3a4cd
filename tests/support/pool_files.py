"""Every file of a host's pool with its digest: what a command must not have changed."""

from __future__ import annotations

from tests.support import labs
from tests.support.hosts import Host


def files(host: Host, skip: str = "", directory: str = "") -> dict[str, str]:
    """The pool's files with their modes and digests, and its directories, by name.

    Args:
        host: where the pool is.
        skip: a file that is left out.
        directory: the pool's directory, when it is known.
    """
    script = (
        'cd "$1"; for f in * .*; do [ "$f" = "$2" ] && continue; '
        'if [ -f "$f" ]; then echo "$(sha256sum < "$f")$(stat -c %a "$f") $f"; '
        'elif [ "$f" != . ] && [ "$f" != .. ] && [ -e "$f" ]; then echo "other - $f"; fi; done'
    )
    done = host.run("sh", "-c", script, "sh", directory or labs.look(host)["directory"], skip)
    rows = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    return {name: text for text, name in rows}
