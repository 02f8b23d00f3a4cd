"""Names that are dangerous in a command a user is told to paste: of domains, volumes, files."""

from __future__ import annotations

# Each is one word to whoever quotes it, and survives being printed.
SHOWN = (
    "a b",
    " leading and trailing ",
    "$(touch hacked)",
    "`touch hacked`",
    "a; touch hacked",
    "a && touch hacked #",
    "a | tee hacked",
    "> hacked",
    "it's",
    'a "quoted" word',
    "\\",
    "'; touch hacked; '",
    "$HOME",
    "*",
    "~root",
    "{a,b}",
    "!!",
    "-rf",
    "--help",
    "caf\u00e9",
    "",
    "x" * 255,
)
# None of these arrives as it is when its printed form is pasted.
HIDDEN = (
    "a\nb",
    "a\ttab",
    "two  blanks",
    "\x1b[31mred",
    "a\rb",
    "nul\0",
    "\u202eright to left",
    "not UTF-8 \udcff",
    "no-break\u00a0blank",
    "x" * 5000,
    "'" * 400,
)
