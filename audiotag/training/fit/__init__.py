"""Own labels: from labelled recordings to a checkpoint, with honest figures."""
