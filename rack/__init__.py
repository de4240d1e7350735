"""The rack and everything around it; see docs/architecture.md.

`python -m rack.VERB` imports this package first, with a first argument of "-m": from here on a
signal ends the verb quietly, also while it imports what it needs.
"""

import sys

if sys.argv[:1] == ["-m"]:
    from rack.system.ending import end_quietly

    end_quietly()
