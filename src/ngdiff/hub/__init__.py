"""a run's result -> its card, and a repository on the model hub."""
