"""The rack and everything around it; see docs/architecture.md.

`python -m rack.VERB` imports this package first, with a first argument of "-m", and so does the
script `lpu-rack`: from here on a signal ends the verb quietly, also while it imports what it needs.

May import: chip.*, interconnect.*, compiler.*, rack.system, rack.commands.
"""

import sys
from os.path import basename

if [basename(word) for word in sys.argv[:1]] in (["-m"], ["lpu-rack"]):
    from rack.system.ending import end_quietly

    end_quietly()
