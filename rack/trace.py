"""`python -m rack.trace`: see rack/commands/trace.py."""

import sys

from rack.commands.trace import main

if __name__ == "__main__":
    sys.exit(main())
