"""Tests of ml_platform/orchestration/."""
