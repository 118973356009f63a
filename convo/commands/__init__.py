"""The ``convo`` command: its command line, and what each of its subcommands does."""
