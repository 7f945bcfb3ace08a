"Every library notebook runs from top to bottom in a fresh kernel; its lessons are its tests"
import nbformat
import pytest
from house import NOTEBOOKS, ROOT
from kernels import ForkedKernelManager
from nbclient import NotebookClient
from refresh import QUIET, own_digest, record


@pytest.mark.parametrize("notebook", [*NOTEBOOKS, ROOT / "nbs" / "index.ipynb"], ids=lambda p: p.stem)
def test_notebook_runs(notebook):
    nb = nbformat.read(notebook, 4)
    NotebookClient(nb, timeout=300, kernel_name="python3", extra_arguments=QUIET, kernel_manager_class=ForkedKernelManager,
                   resources={"metadata": {"path": str(notebook.parent)}}).execute()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_outputs_belong_to_the_committed_code(notebook):
    "Else `make refresh`"
    assert record().get(notebook.stem, {}).get("own") == own_digest(notebook)
