"""Re-run the notebooks whose committed outputs are stale: `make refresh`.

`nbs/outputs.json` holds two digests a notebook: of its own code cells and of the modules that it stands on. A notebook is stale
when either changed since its outputs were made. The laws demand only the first, so that a change low in the house does not force
every picture to be drawn again on the spot.
"""
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from house import NOTEBOOKS, ROOT, cells

QUIET = ["--IPKernelApp.log_level=ERROR"]
RECORD = ROOT / "nbs" / "outputs.json"
TOUR = [*NOTEBOOKS, ROOT / "nbs" / "index.ipynb"]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def own_digest(notebook: Path) -> str:
    return digest("\n\n".join(c["source"] for c in cells(notebook) if c["cell_type"] == "code"))


def imported(source: str) -> set[str]:
    "Sibling modules that a cell or a module imports; a cell may hold magics, so this is no syntax tree"
    lines = re.findall(r"^\s*(?:from geoseg_nb\.(\w+)|from \.(\w+)|from geoseg_nb import (.+)|import geoseg_nb\.(\w+))", source, re.MULTILINE)
    return {name for found in lines for group in found for name in re.findall(r"\w+", group)}


def below_digest(notebook: Path) -> str:
    "Digest of all modules that a notebook reaches"
    todo = imported("\n".join(c["source"] for c in cells(notebook) if c["cell_type"] == "code"))
    seen: dict[str, str] = {}
    while todo:
        module = ROOT / "geoseg_nb" / f"{todo.pop()}.py"
        if module.stem in seen or not module.exists(): continue
        seen[module.stem] = module.read_text(encoding="utf-8")
        todo |= imported(seen[module.stem])
    return digest("".join(seen[name] for name in sorted(seen)))


def record() -> dict:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def stale() -> list[Path]:
    known = record()
    return [n for n in TOUR if known.get(n.stem) != {"own": own_digest(n), "below": below_digest(n)}]


def rerun(notebook: Path) -> None:
    "Execute in place, clean, and note what the outputs were made from"
    import nbformat
    from nbclient import NotebookClient
    os.environ |= {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}  # on a slow machine a progress bar would land in the output
    nb = nbformat.read(notebook, 4)
    NotebookClient(nb, timeout=900, kernel_name="python3", extra_arguments=QUIET,
                   resources={"metadata": {"path": str(notebook.parent)}}).execute()
    nbformat.write(nb, notebook)
    subprocess.run([Path(sys.executable).with_name("nbdev-clean"), "--fname", notebook], cwd=ROOT, check=True)
    known = {**record(), notebook.stem: {"own": own_digest(notebook), "below": below_digest(notebook)}}
    RECORD.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    for path in (TOUR if "--all" in sys.argv else stale()):
        print(path.relative_to(ROOT), flush=True)
        cells.cache_clear()
        rerun(path)
