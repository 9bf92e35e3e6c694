"""Waveform to windows and log-mel."""
