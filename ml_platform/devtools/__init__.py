"""Development tools: the servers of `ml-platform dev` and the demo's data."""
