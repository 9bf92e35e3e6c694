"""What is returned."""
