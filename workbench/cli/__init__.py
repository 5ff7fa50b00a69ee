"""The command line, `workbench` or `python -m workbench`: one subcommand a file.

`main` parses and dispatches. Each subcommand imports what it runs inside its handler, so that
`workbench doctor` starts at once and works where torch does not. Nothing imports this package.
"""
