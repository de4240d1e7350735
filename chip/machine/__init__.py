"""The reference machine: runs TSP instructions on real data, and is the definition of a chip.

A program is resolved once. Each instruction is checked by itself (`check`) and turned into events
(`collect`, `events`). Then every operand is traced to what produced it (`resolve`): along streams
that move one register a cycle (`streams`), through SRAM and its ports (`memory`, `ports`), ALU
registers, and the MXM's buffers and accumulators (`matrix`). What the hardware cannot do is refused
there, by name: two writers of one stream register, a port or bank used twice, a value that nobody
wrote. None of that depends on data.

A step then only moves data (`machine`): tasks in an order that respects every dependence (`order`),
each a NumPy call or a few (`units`, `accumulators`, `live`, `data`), a Repeat at once. Idle cycles
cost nothing. The result is that of stepping every register every cycle, as
tests/test_chip_machine_naive.py shows.

May import: chip, chip.isa, chip.kernels.
"""
