"""`python -m rack.generate`: see rack/commands/generate.py."""

import sys

from rack.commands.generate import main

if __name__ == "__main__":
    sys.exit(main())
