"""`python -m vision_ssm`: the same as `vision-ssm`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
