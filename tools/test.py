"""`vision-ssm test` from a source tree: `python tools/test.py CONFIG CHECKPOINT [options]`; `--help` lists them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vision_ssm.cli import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
