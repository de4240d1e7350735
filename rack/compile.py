"""`python -m rack.compile`: see rack/commands/compile.py."""

import sys

from rack.commands.compile import main

if __name__ == "__main__":
    sys.exit(main())
