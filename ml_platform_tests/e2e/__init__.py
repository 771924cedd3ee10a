"""Real processes: the command line as people call it, the daemon, the servers and a browser."""
