"""Data sources -> examples -> token ids with labels -> paired batches."""
