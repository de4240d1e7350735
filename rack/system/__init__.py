"""This computer around a process: signals, standard streams, output files, progress.

May import: chip.*, rack.
"""
