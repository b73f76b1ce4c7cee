"""Let ``python -m flashbulb.apps.cli`` do what ``flashbulb`` does."""

import sys

from flashbulb.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
