"""Many inputs, surviving a kill."""
