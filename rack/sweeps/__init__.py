"""Grids of plans and measurements: points, the processes that work on them, the file of rows.

May import: compiler.*, rack, rack.system, rack.machines, rack.run, rack.reports.
"""
