"""``sonde`` and ``python -m sonde``."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from .cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
