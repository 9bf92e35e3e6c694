"""Training block by block: a DyMN that inherits an MN, fitted on clips that the MN scored once."""
