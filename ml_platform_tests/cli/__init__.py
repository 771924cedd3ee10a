"""Tests of ml_platform/cli/."""
