"""`python -m service` is `levit`."""

from service.cli import main

main()
