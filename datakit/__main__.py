"""`python -m datakit` is the command `datakit`."""

from datakit.cli import main

main()
