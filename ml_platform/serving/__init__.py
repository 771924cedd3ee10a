"""The prediction server: it obeys the traffic plan and serves what the ledger names, bytes verified; no Dagster."""
