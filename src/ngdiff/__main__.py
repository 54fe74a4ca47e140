"""``python -m ngdiff``."""

from ngdiff.cli import main

main()
