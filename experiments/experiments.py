"""Found in place of the package by `python experiments/NAME.py`, which cannot work: says how to start NAME."""

import sys
from pathlib import Path

folder, name = Path(__file__).resolve().parents[1], Path(sys.argv[0]).stem
print(f"error: start it in {folder}: python -m experiments.{name}", file=sys.stderr)
sys.exit(2)
