"""The questions that are asked of the engine: python -m experiments.NAME, each with --help."""

import importlib.util
import sys

LIBRARIES = ("filelock", "matplotlib", "scipy", "sklearn", "statsmodels", "sympy", "threadpoolctl", "tqdm")

missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
if missing:
    print(
        f"error: no module named {', '.join(missing)}: pip install -e '.[experiments]' in a checkout", file=sys.stderr
    )
    sys.exit(2)
