"""Tests of ml_platform/release/."""
