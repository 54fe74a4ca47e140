"""the loop, when it stops, and how it survives."""
