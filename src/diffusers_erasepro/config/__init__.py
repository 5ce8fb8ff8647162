"""What to erase and how: the spec, the options, the templates."""
