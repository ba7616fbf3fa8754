"""Check a download of COCO 2017's detection set, and say what is missing or wrong.

python tools/prepare_coco.py data/coco                  # records, and the names of files
python tools/prepare_coco.py data/coco --splits val     # what an evaluation needs
python tools/prepare_coco.py data/coco --decode         # every image, too
python tools/prepare_coco.py data/coco --extract        # the downloaded archives first
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vision_ssm.data.coco import ARCHIVES, check_coco  # noqa: E402
from vision_ssm.data.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(check_coco, ARCHIVES, __doc__.splitlines()[0], "data/coco", splits=("train", "val")))
