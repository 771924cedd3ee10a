"""Tests of ml_platform/records/."""
