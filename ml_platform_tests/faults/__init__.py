"""Kills, full disks, outages, races and mutants: what the platform must survive."""
