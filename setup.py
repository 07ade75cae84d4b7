"Everything comes from settings.ini (what the project needs) and constraints.txt (the exact versions)."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
pins = [line.strip() for line in (here / "constraints.txt").read_text(encoding="utf-8").splitlines()]
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    install_requires=[pin for pin in pins if pin and not pin.startswith("#")],
    entry_points={"nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
                  "console_scripts": ["kdnb=kdnb.publish:main"]},
)
