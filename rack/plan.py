"""`python -m rack.plan`: see rack/commands/plan.py."""

import sys

from rack.commands.plan import main

if __name__ == "__main__":
    sys.exit(main())
