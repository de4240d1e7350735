"""The verbs of the command line: what each parses and what it prints.

May import: chip.*, compiler.*, rack, rack.system, rack.machines, rack.text, rack.run, rack.reports,
rack.serve.
"""
