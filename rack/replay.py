"""`python -m rack.replay`: see rack/commands/replay.py."""

import sys

from rack.commands.replay import main

if __name__ == "__main__":
    sys.exit(main())
