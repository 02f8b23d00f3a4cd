"""Fuzzing of every parser of strangers' bytes.

`targets` lists the parsers, each with good inputs to begin from. `make test` runs each on these, on
what fuzzers found earlier (`found/TARGET/`), and on some hundred inputs that `mutate` makes of
them, the same ones each time. `make fuzz` has atheris look for new ones, ten minutes a target, and
writes what it finds to `found/`.
"""
