"""The prediction server: it follows the traffic plan and serves verified versions from the ledger; no Dagster."""
