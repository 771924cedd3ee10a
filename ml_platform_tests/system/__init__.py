"""Tests of ml_platform/system/."""
