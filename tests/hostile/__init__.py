"""Makers of hostile input: plain functions that make bytes or files, for tests and fuzzers."""
