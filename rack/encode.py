"""`python -m rack.encode`: see rack/commands/encode.py."""

import sys

from rack.commands.encode import main

if __name__ == "__main__":
    sys.exit(main())
