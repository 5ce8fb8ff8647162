"""`python -m diffusers_erasepro.cli` is the command `erasepro`."""

from .main import main

if __name__ == "__main__":
    main()
