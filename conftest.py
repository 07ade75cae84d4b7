"pytest runs tests/ and, through nbval, every cell of nbs/ (tables apart) against the outputs committed with it."
import os
import tempfile

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)   # without .pyc files every kernel compiles torch again
os.environ.setdefault("OMP_NUM_THREADS", "1")     # spinning threads on shared cores are far slower than one thread
scratch = tempfile.mkdtemp(prefix="kdnb-tests-")
os.environ["KDNB_REPORTS"] = f"{scratch}/reports"  # a test never writes into the project's reports
os.environ["KDNB_CACHE"] = f"{scratch}/cache"


def pytest_itemcollected(item):
    cell = getattr(item, "cell", None)
    if cell is None: return
    if cell.execution_count is None: cell.execution_count = 0  # nbdev_clean blanks it; nbval would call the cell unrun
    item.output_timeout = 600  # seconds; nbval's own 5 may pass on a busy machine
