"""Tests of ml_platform/storage/."""
