"""The prediction log: servers write each prediction to files, which are collected into a Delta table."""
