"""a run -> one that survives: its own folder, checkpoints, a wish to stop, and the result written whole."""
