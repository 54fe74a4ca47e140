"""Invented people to forget and common knowledge to keep, for runs that need no download."""
