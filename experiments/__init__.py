"""The questions that are asked of the engine: python -m experiments.NAME, each with --help."""

import importlib.util
import signal
import sys

LIBRARIES = ("filelock", "matplotlib.figure", "scipy", "statsmodels", "threadpoolctl", "tqdm")  # of every command
LATER = ("sklearn", "sympy")  # imported by the commands that need them, when they do

STARTED = sys.argv[:1] == ["-m"]  # by python -m experiments.NAME, which has not got to NAME yet
if STARTED and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends imports without a traceback; command.run handles it

packages = [name.partition(".")[0] for name in (*LIBRARIES, *LATER)]
missing = [name for name in packages if importlib.util.find_spec(name) is None]
if missing:
    print(
        f"error: no module named {', '.join(missing)}: pip install -e '.[experiments]' in a checkout", file=sys.stderr
    )
    sys.exit(2)
