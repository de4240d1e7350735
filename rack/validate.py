"""`python -m rack.validate`: see rack/commands/validate.py."""

import sys

from rack.commands.validate import main

if __name__ == "__main__":
    sys.exit(main())
