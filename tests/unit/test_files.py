"""What is done to files of any kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from poclab import files
from poclab.errors import PoclabError


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../a", "/etc/passwd", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(PoclabError, match="invalid file name") as caught:
        files.below(Path("/pool"), name)
    assert caught.value.why == "it would lead out of /pool"


@pytest.mark.parametrize("name", ["a", "...", ".a", "-rf", "a b", "a\n", "json:{}", "$(id)"])
def test_any_other_name_is_one_of_the_directory(name: str) -> None:
    assert files.below(Path("/pool"), name).parent == Path("/pool")


def test_configuration_is_whole_and_for_everybody_to_read(tmp_path: Path) -> None:
    path = tmp_path / "rules.d/65-x.rules"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.parent.mkdir()
    path.with_name(f".{path.name}.new").symlink_to(victim)  # of whom it may be
    for text in (b"one", b"two"):
        files.write_configuration(path, text)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (text, 0o644)
    assert victim.read_text() == "precious"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
