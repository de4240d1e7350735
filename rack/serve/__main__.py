"""`python -m rack.serve`: see rack/commands/serve.py."""

import sys

from rack.commands.serve import main

if __name__ == "__main__":
    sys.exit(main())
