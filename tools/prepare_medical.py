"""Check a download of a medical data set, and write the data list that its config trains on.

python tools/prepare_medical.py acdc data/acdc
python tools/prepare_medical.py amos_mr data/amos22
python tools/prepare_medical.py synapse data/btcv
python tools/prepare_medical.py isic18 data/isic18
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vision_ssm.data.medical_command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(__doc__.splitlines()[0]))
