"""The kinds of edit, one class each."""
