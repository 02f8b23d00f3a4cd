"""What `image show` says of a version, from what is on its host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poclab.core.errors import PoclabError
from poclab.images.protection import refuse_protected
from poclab.images.show import describe
from poclab.model.version import Ref
from poclab.store.marks import Mark, Marked, Marks
from tests.support import make


def test_relations_go_by_the_disk() -> None:
    version = make.version("shop:v1")
    again = replace(version, ref=Ref("shop", "stable"))
    child = make.version("shop:v2", parents=(version.digest,))
    versions = [version, again, child, make.version("other:v1")]
    marks = Marks(
        tuple(
            Mark("acme", name, "", "", vms=(Marked("vm1", version.ref, digest),))
            for name, digest in (("start", version.digest), ("old", "sha256:another"))
        )
    )
    row = describe(version, versions, [make.observed_vm(make.record())], marks)
    assert (row.same_disk, row.layered) == (["shop:stable"], ["shop:v2"])
    assert (row.parents, row.used_by) == ([], ["acme/vm1", "acme@start"])
    row = describe(child, versions, [make.observed_vm(make.record())], marks)
    assert (row.same_disk, row.layered, row.used_by) == ([], [], [])
    assert row.parents == [version.digest]


def test_a_protected_version_is_refused_with_the_way_out() -> None:
    refuse_protected(make.version("shop:v1"))
    with pytest.raises(PoclabError, match="poclab image unprotect shop:v1"):
        refuse_protected(make.version("shop:v1", protected=True))
