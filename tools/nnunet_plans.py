"""`vision-ssm nnunet-plans` from a source tree: `python tools/nnunet_plans.py PLANS --network NAME`; see `--help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vision_ssm.cli import main

if __name__ == "__main__":
    sys.exit(main(["nnunet-plans", *sys.argv[1:]]))
