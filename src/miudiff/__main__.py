"""`python -m miudiff`, which is what torchrun starts."""

from miudiff.cli import main

if __name__ == "__main__":
    main()
