"""Runs many poclab commands in one process and says what each did to the pool's files.

    python many.py < TASK

TASK is a JSON object: `directory` to work in, the `pool`'s directory, and `commands`: pairs of
arguments and standard input. The answer is a list with the exit status, both outputs, and the
names of the files that are not as before. The file imports nothing of the tests, so any account
can run it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

from poclab.cli.app import run


def files(directory: Path) -> set[tuple[str, int, str]]:
    """Name, mode and digest of all that is in a directory."""
    return {
        (
            path.name,
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in directory.iterdir()
    }


def one(arguments: list[str], text: str) -> tuple[object, str, str]:
    """Run one command."""
    sys.argv = ["poclab", *arguments]
    sys.stdin = TextIOWrapper(BytesIO(text.encode()))
    out, err = StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run()
    except SystemExit as end:
        return end.code, out.getvalue(), err.getvalue()


def main() -> None:
    """Run them; see the module."""
    task = json.load(sys.stdin)
    os.chdir(task["directory"])
    pool = Path(task["pool"])
    ended = []
    for arguments, text in task["commands"]:
        before = files(pool)
        done = one(arguments, text)
        ended.append((*done, sorted({name for name, _, _ in before ^ files(pool)})))
    json.dump(ended, sys.stdout)


if __name__ == "__main__":
    main()
