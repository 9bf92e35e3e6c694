"""Anything to mono float32 at one rate, in pieces."""
