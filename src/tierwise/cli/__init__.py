"""The command line. `main` has the commands of a gateway; the other rooms are groups of commands."""
