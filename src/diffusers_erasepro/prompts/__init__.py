"""From a spec to aligned token positions."""
