"Tests, kernels and subprocesses share two cores; teams of threads would wait for each other at every layer of a network"
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
