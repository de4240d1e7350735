"""Serving traces in virtual time: what users of a rack would see.

Non-goals: tokens; wall time.

May import: compiler.*, rack, rack.run, rack.reports.
"""
