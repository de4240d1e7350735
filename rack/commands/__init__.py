"""The verbs of the command line: their parsing and printing.

May import: chip.*, compiler.*, rack, rack.system, rack.machines, rack.text, rack.run, rack.reports,
rack.sweeps, rack.traffic, rack.serve.
"""
