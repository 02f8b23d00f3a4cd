"""What strangers, guests and neighbours may send: disks, layers, records, floods, file names.

Each module has generators of one kind of hostile input, for the tests and for the fuzzers. What
was tried and what becomes of it is in the table of docs/security.md.
"""
