"""Pictures, traces and tables of schedules, and comparisons with published figures.

May import: chip.*, interconnect.*, compiler.*, rack, rack.machines, rack.run.
"""
