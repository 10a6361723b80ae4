"""The command ``sfumato``, and ``python -m sfumato``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        # Here, for importing PyTorch and the rest takes seconds in which people press Ctrl-C too.
        from sfumato.cli.commands import run

        code = run()
    except KeyboardInterrupt:
        print("sfumato: stopped at once", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
