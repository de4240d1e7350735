"""The reference machine: runs TSP instructions on real data, and is the definition of a chip.

A program is resolved once: every operand of every issue is traced to what produced it, along
streams that move one register a cycle, through SRAM ports, ALU registers, the MXM's buffers and
accumulators (`resolve`). Whatever the hardware could not do is refused there, by name: two writers
of one stream register, a port or bank used twice, a value that nobody wrote. Nothing of that
depends on data, so a step then only moves data (`data`, `order`): idle cycles cost nothing, and a
Repeat is one NumPy call. Step by step the result is that of stepping every register every cycle;
tests/test_chip_machine_naive.py shows it.
"""
