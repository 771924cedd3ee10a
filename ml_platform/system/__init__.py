"""The operating system and the network: processes, memory, HTTP."""
