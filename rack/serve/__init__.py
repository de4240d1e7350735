"""The HTTP surface: chat and text completions, limits, metrics and logs.

May import: compiler.*, rack, rack.system, rack.text, rack.run, rack.serve.responses_api,
rack.commands.
"""
