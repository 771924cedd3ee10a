"""Tests of quality gates on a change."""
