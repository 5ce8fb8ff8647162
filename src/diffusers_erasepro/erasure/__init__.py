"""The method. Read `erase` first."""
