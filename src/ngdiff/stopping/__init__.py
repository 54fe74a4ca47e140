"""figures at a check -> whether the forget target is met, and whether to continue."""
