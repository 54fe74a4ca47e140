"""Speed, memory and the studies behind docs/results.md, as commands that print figures."""
