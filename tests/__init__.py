import os

# Before anything imports NumPy. The pillar divides the work itself; threads of BLAS beside it wait for each other, 30
# times longer than they compute where something else runs on the machine.
for library in ("OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
