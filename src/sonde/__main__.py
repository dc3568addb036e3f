"""``sonde`` and ``python -m sonde``."""

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Of what the hub's client tries again, the error that comes of it says enough.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    from .cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
