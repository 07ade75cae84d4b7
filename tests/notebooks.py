"Runs a table's notebook as a user does."
import subprocess
import sys
from pathlib import Path

TABLES = Path(__file__).resolve().parents[1]/"nbs/tables"


def papermill(folder, name, **given):
    "papermill's exit code and output, run in a folder that is not the project's."
    words = [word for k, v in given.items() for word in ("-p", k, str(v))]
    command = [sys.executable, "-m", "papermill", str(TABLES/f"{name}.ipynb"), str(folder/f"{name}.ipynb"), "--no-progress-bar", "--start-timeout", "600", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr
