"""Changing weights in place, all or nothing, and changing them back bit for bit."""
