"""`python -m poclab` is the same program as `poclab`."""

from poclab.cli import main

if __name__ == "__main__":
    main()
