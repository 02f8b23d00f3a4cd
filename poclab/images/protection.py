"""Use case: versions that must not be removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.model.version import Ref, Version
from poclab.model.version_volumes import manifest_volume
from poclab.store.manifest import encode
from poclab.store.versions import Store
from poclab.virt.host import Host


def protect(host: Host, refs: Sequence[Ref], *, protected: bool = True) -> list[Version]:
    """Protect versions from removal, or no longer.

    Args:
        host: where they are.
        refs: the versions; when one is not there, none is changed.
        protected: which of the two.

    Returns:
        The versions that were not so before.

    Raises:
        PoclabError: one of them is not there, or the pool cannot be written.
    """
    store = Store(host.pool, host.uri)
    with store.changing():
        found = [version for version in map(store.get, refs) if version.protected != protected]
        for version in found:
            changed = encode(replace(version, protected=protected))
            events.step("manifest", version=str(version.ref))
            host.pool.rewrite(manifest_volume(version.ref), changed)
    return found


def refuse_protected(version: Version) -> None:
    """See that a version may be removed.

    Raises:
        PoclabError: it is protected.
    """
    if version.protected:
        raise PoclabError(
            f"{version.ref} is protected",
            why="somebody wants it not to be removed",
            fix=f"if it may go after all: poclab image unprotect {version.ref}",
        )
