"""Tests of ml_platform.monitoring."""
