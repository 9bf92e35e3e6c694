"""The networks as the papers write them: the readable definition, and the oracle."""
