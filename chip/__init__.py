"""One LPU chip: what it is and what it does. Here: its specification, floor plan, SRAM and errors.

May import: nothing of ours.
"""
