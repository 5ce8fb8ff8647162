"""The kinds of edit, one class each, and the list of them that a plan comes to."""
