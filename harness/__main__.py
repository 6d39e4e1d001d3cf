"""`python -m harness`: the same as `harness`."""

from harness.command import main

main()
