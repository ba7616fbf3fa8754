"""`vision-ssm train` from a source tree: `python tools/train.py CONFIG [options]`; `--help` lists them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vision_ssm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
