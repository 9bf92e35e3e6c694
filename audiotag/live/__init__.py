"""Streams, and events that start and end once."""
