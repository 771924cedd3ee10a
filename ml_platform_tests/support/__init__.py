"""Fakes, servers and helpers of the tests."""
