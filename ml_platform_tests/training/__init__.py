"""Tests of ml_platform/training/."""
