"""two losses -> two gradients and their Gramian -> weights -> an update, and the size of its step."""
