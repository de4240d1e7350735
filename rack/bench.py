"""`python -m rack.bench`: see rack/commands/bench.py."""

import sys

from rack.commands.bench import main

if __name__ == "__main__":
    sys.exit(main())
