"""Where the program starts: the command `miudiff`, and `python -m miudiff`, which is what torchrun starts."""

import sys


def run() -> None:
    """Run the command line; Ctrl-C while it is being imported ends it like any other."""
    try:
        from miudiff.cli import main
    except KeyboardInterrupt:
        sys.stderr.write("miudiff: interrupted before anything began\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    run()
