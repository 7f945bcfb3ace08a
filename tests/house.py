"What the laws read: notebooks as cells, exported modules as syntax trees"
import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
JOBS = sorted((ROOT / "nbs" / "jobs").glob("*.ipynb"))
MODULES = sorted(p for p in (ROOT / "geoseg_nb").glob("*.py") if p.name != "_modidx.py")


@cache
def cells(notebook: Path) -> list[dict]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found]


def is_export(cell: dict) -> bool:
    return cell["cell_type"] == "code" and "#| export" in cell["source"]


def is_lesson(cell: dict) -> bool:
    return cell["cell_type"] == "code" and "#| " not in cell["source"]


def defines(source: str) -> bool:
    "True for anything but imports and docstrings"
    quiet = (ast.Import, ast.ImportFrom, ast.Expr)
    return any(not isinstance(node, quiet) for node in ast.parse(source).body)


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def functions(module: Path) -> list[tuple[str, int]]:
    "Name and length in lines of every function and method, signature included"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(n.name, n.end_lineno - n.lineno + 1) for n in ast.walk(tree(module)) if isinstance(n, kinds)]


def number(module: Path) -> str:
    "Number of the notebook that a module was exported from, such as 12a"
    return re.search(r"nbs/(\d+[a-z]?)_\w+\.ipynb", module.read_text(encoding="utf-8"))[1]


def geoseg(*words, cwd=ROOT, **environment):
    "Run the program; the finished process"
    return subprocess.run([sys.executable, "-m", "geoseg_nb.cli", *map(str, words)], cwd=cwd, capture_output=True, text=True,
                          timeout=900, env={**os.environ, **environment})


def long_functions() -> list[str]:
    "Functions over the 25 lines that the style calls long, longest first"
    found = [(n, f"{module.stem}.{f}") for module in MODULES for f, n in functions(module) if n > 25]
    return [f"{name} {n} lines" for n, name in sorted(found, reverse=True)]


def prose(notebook: Path) -> float:
    "Share of the cells that are prose"
    kinds = [cell["cell_type"] == "markdown" for cell in cells(notebook)]
    return sum(kinds) / len(kinds)


def odd_notebooks() -> list[str]:
    "Notebooks with less than a quarter of prose, or more than 80 cells"
    odd = [n for n in NOTEBOOKS if prose(n) < 0.25 or len(cells(n)) > 80]
    return [f"{n.stem} {prose(n):.0%} prose, {len(cells(n))} cells" for n in odd]


def reasons() -> str:
    "What the decision records say"
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "nbs" / "decisions").glob("*.md")))
