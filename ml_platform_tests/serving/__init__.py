"""Tests of the prediction server, one file per module."""
