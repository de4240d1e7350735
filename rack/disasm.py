"""`python -m rack.disasm`: see rack/commands/disasm.py."""

import sys

from rack.commands.disasm import main

if __name__ == "__main__":
    sys.exit(main())
