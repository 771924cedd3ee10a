"""Tests of ml_platform/inference/."""
