"""Look for inputs that a parser of strangers' bytes does not survive; see `make fuzz`.

    python -m tests.fuzz [TARGET...] [--seconds N]

Each target runs in a process of its own under atheris, which keeps what leads to new code. What
ends a parser in another way than by its refusal, takes ten seconds or a gigabyte is written to
tests/fuzz/found/TARGET/, where `make test` finds it from then on. The exit status is 1 if there was
any.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FOUND = HERE / "found"
SECONDS = 600
# libFuzzer's own options: seconds for one input, and MiB of memory for the process.
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=0")


def main() -> int:
    """Run the targets one after the other."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=SECONDS, help="seconds for each target")
    given = parser.parse_args()
    if unknown := set(given.targets) - TARGETS.keys():
        parser.error(f"unknown target {', '.join(sorted(unknown))}")
    broken = [name for name in given.targets or TARGETS if not _survives(name, given.seconds)]
    print("found inputs for:", ", ".join(broken) or "no target")
    return bool(broken)


def _survives(name: str, seconds: int) -> bool:
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    found = FOUND / name
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch, "corpus")
        corpus.mkdir()
        earlier = [path.read_bytes() for path in sorted(found.glob("*"))]
        for number, seed in enumerate([*target.seeds(), *earlier]):
            (corpus / f"{number}").write_bytes(seed)
        words = Path(scratch, "words")
        lines = ('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in target.words)
        words.write_text("\n".join(lines) + "\n")
        found.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "tests.fuzz.worker", name, str(corpus), f"-dict={words}"]
        argv += [f"-max_total_time={seconds}", f"-artifact_prefix={found}/", *LIMITS]
        print(f"=== {name}: {seconds} s", flush=True)
        return subprocess.run(argv, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
