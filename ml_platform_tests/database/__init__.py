"""Tests of ml_platform/database/."""
