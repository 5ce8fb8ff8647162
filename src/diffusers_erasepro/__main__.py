"""`python -m diffusers_erasepro` is the command `erasepro`."""

from .cli.main import main

if __name__ == "__main__":
    main()
