"""Bind a chip's program for one step to instructions: templates at addresses and absolute cycles."""
