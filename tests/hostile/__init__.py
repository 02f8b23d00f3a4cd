"""Makers of hostile input, by topic: plain functions for tests and fuzzers."""
