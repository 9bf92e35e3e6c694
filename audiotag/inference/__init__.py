"""The loop that joins sources, frontend and network."""
