"Writes README.md from nbs/index.ipynb: `python tools/readme.py [file]`."
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor

root = Path(__file__).resolve().parents[1]
notebook = nbformat.read(root/"nbs/index.ipynb", as_version=4)
notebook.metadata["language_info"] = {"name": "python"}  # nbdev_clean drops it; without it code has no language
hidden = TagRemovePreprocessor(remove_input_tags={"remove_input"})
exporter = MarkdownExporter()
exporter.register_preprocessor(hidden, enabled=True)
text, _ = exporter.from_notebook_node(notebook)
text = re.sub(r"\]\((?!\w+://)(?!\.\./)", "](nbs/", text).replace("](../", "](")  # links from the root instead of from nbs/
text = re.sub(r"\n{3,}", "\n\n", text)
target = Path(sys.argv[1]) if len(sys.argv) > 1 else root/"README.md"
target.write_text(text.strip() + "\n", encoding="utf-8")
