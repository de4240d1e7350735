"""Text to tokens and back, the choice of the next token, and function calls.

May import: chip.*, compiler.*, rack, rack.system.
"""
