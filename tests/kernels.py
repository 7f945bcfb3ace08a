"""Fresh kernels that need not import the libraries again

A nursery imports what nearly every notebook imports, none of it ours, and forks a kernel whenever it is asked. A notebook still begins in a process
of its own in which nothing of the package was imported and nothing was computed.
"""
import json
import os
import subprocess
import sys
import time
from functools import cache

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

NURSERY = """
import json, os, signal, sys
import geopandas, matplotlib.pyplot, pydantic, rasterio, xarray, zarr
import lightning, segmentation_models_pytorch, torch
from ipykernel.kernelapp import launch_new_instance

def kernel(order):
    os.setsid()
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2): os.dup2(null, stream)
    sys.argv = ["ipykernel_launcher", *order["words"]]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    launch_new_instance(argv=order["words"])
    os._exit(0)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead leave at once
print("ready", flush=True)
for line in sys.stdin:
    if child := os.fork(): print(child, flush=True)
    else: kernel(json.loads(line))
"""


class Nursery:
    "The process that forks kernels; it ends with the tests, since its standard input does"

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def fork(self, words, env, cwd) -> int:
        self.process.stdin.write(json.dumps({"words": words, "env": dict(env), "cwd": str(cwd)}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


nursery = cache(Nursery)


class Forked:
    "A process that is not our child, with as much of Popen as a kernel's provisioner asks for"

    stdin = stdout = stderr = None

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None:
            try: os.kill(self.pid, 0)
            except ProcessLookupError: self.returncode = 0
        return self.returncode

    def send_signal(self, number): os.kill(self.pid, number)

    def kill(self): self.send_signal(9)

    def terminate(self): self.send_signal(15)

    def wait(self):
        while self.poll() is None: time.sleep(0.02)
        return self.returncode


class ForkProvisioner(LocalProvisioner):
    "Starts a kernel in the nursery"

    async def launch_kernel(self, cmd, **kwargs):
        words = cmd[cmd.index("ipykernel_launcher") + 1:]
        self.process = Forked(nursery().fork(words, kwargs["env"], kwargs["cwd"]))
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class ForkedKernelManager(AsyncKernelManager):
    "For `NotebookClient(kernel_manager_class=...)`"

    async def _async_pre_start_kernel(self, **kwargs):
        self.provisioner = ForkProvisioner(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
        return await super()._async_pre_start_kernel(**kwargs)

    pre_start_kernel = _async_pre_start_kernel
