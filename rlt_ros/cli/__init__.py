"""The command `rlt`: one module a subcommand."""
