"""Tests of ml_platform/governance/."""
