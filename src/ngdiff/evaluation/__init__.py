"""Models and examples -> figures."""
