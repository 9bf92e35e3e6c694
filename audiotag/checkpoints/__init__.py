"""Known checkpoints, and verified weights from anywhere."""
