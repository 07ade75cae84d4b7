"Knowledge distillation in PyTorch: every loss derived and checked in a notebook, every table of a paper one command."
import os

# Before torch is loaded: threads that spin long while they wait make two runs on the same cores some twenty times slower each,
# threads that do not spin at all make a small network four times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
