"""What tells people that something is wrong: no Dagster."""
