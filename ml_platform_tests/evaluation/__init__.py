"""Tests of ml_platform/evaluation/."""
