"""The questions that are asked of the engine: python -m experiments.NAME, each with --help."""

import importlib.util
import signal
import sys

LIBRARIES = ("filelock", "matplotlib", "scipy", "sklearn", "statsmodels", "sympy", "threadpoolctl", "tqdm")

STARTED = sys.argv[:1] == ["-m"]  # by python -m experiments.NAME, which has not got to NAME yet
if STARTED and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends imports without a traceback; command.run handles it

missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
if missing:
    print(
        f"error: no module named {', '.join(missing)}: pip install -e '.[experiments]' in a checkout", file=sys.stderr
    )
    sys.exit(2)
