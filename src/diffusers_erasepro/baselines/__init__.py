"""Other methods: the same call as `erase`, the same adapter out."""
