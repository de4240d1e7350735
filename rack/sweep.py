"""`python -m rack.sweep`: see rack/commands/sweep.py."""

import sys

from rack.commands.sweep import main

if __name__ == "__main__":
    sys.exit(main())
