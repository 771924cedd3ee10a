"""Tests of ml_platform/models/."""
