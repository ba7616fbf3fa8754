"""Check a download of BTCV's abdomen, or volumes of one's own in its layout, and write the data list for training.

python tools/prepare_btcv.py data/btcv
python tools/prepare_btcv.py data/mine --validation 0.2 --labels names.json
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vision_ssm.data.btcv_command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(__doc__.splitlines()[0], "data/btcv"))
