"""Tests of ml_platform/devtools/."""
