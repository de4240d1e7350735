"""`python -m rack.report`: see rack/commands/report.py."""

import sys

from rack.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
