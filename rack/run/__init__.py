"""A model on a machine: engine, driver, and chips as objects, processes or Ray actors.

May import: chip.*, interconnect.*, compiler.*, rack, rack.system, rack.machines, rack.text.
"""
