"""Check a download of ADE20K's scene parsing set, and say what is missing or wrong.

python tools/prepare_ade20k.py data/ade/ADEChallengeData2016              # names and numbers of files
python tools/prepare_ade20k.py data/ade/ADEChallengeData2016 --decode     # every pixel, too
python tools/prepare_ade20k.py data/ade/ADEChallengeData2016 --extract    # the downloaded archive first
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vision_ssm.data.ade20k import ARCHIVES, check_ade20k  # noqa: E402
from vision_ssm.data.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(check_ade20k, ARCHIVES, __doc__.splitlines()[0], "data/ade/ADEChallengeData2016"))
