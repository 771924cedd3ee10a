"""The processes that answer requests: loading, routing, batching."""
