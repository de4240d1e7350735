"""The endpoint `/responses`: its requests, answers and events.

May import: rack.text, rack.run, rack.serve.
"""
