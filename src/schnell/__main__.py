"""`python -m schnell`, the same as the `schnell` command."""

from schnell.cli import main

main()
