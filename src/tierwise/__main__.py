"""`python -m tierwise`, for where the command is not on the path."""

from tierwise.cli.main import main

main()
