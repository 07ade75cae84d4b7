"Rewrites constraints.txt from settings.ini, keeping the pins it can: `python tools/lock.py [--upgrade]` (needs uv)."
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parents[1]
ini = ConfigParser(delimiters=["="])
ini.read(root / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
command = ["uv", "pip", "compile", "-q", "--universal", "-p", cfg["min_python"], "--no-header", "--no-annotate",
           "--no-emit-index-url", "-", "-o", "constraints.txt", *sys.argv[1:]]
subprocess.run(command, input=cfg["requirements"], text=True, check=True, cwd=root)
