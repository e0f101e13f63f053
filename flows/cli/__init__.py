"""The command line. Nothing heavy is imported before a command is known: `--help` has to answer at once."""
