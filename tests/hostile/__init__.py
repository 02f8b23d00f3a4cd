"""Generators of hostile input: plain functions that make bytes and files, for tests and fuzzers."""
