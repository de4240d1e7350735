"""`python -m rack.compare`: see rack/commands/compare.py."""

import sys

from rack.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
