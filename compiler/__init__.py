"""The compiler: a model becomes a schedule. Here: what joins the passes, and plain data they share.

May import: chip, chip.ops, compiler.model, compiler.place, compiler.schedule, compiler.codegen,
compiler.verify.
"""
