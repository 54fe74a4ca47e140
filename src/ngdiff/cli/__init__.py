"""The command line: ``ngdiff``."""

from ngdiff.cli.app import main

__all__ = ["main"]
