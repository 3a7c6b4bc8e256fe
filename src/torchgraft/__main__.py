"""The program as ``python -m torchgraft``."""

from torchgraft.cli.main import main

main()
