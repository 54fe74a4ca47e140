"""a run -> one that survives: its own folder, checkpoints, stop requests, and a complete result."""
