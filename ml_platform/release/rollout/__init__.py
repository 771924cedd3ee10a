"""Rollouts: the traffic plans that move requests to a new champion, their steps and their statistical tests."""
