"Knowledge distillation in PyTorch: every loss derived and checked in a notebook, every table of a paper one command."
import os

# Before torch is loaded: threads that spin while they wait make two runs on the same cores some thirty times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
