"""The adapter and its file: read, write, describe, share."""
