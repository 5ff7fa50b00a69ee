"""A process that tries, checks and compiles kernels: `python -m workbench.playground.worker FD`.

It stays alive across candidates, so each costs its own work alone, and may be killed at any time:
what crashes or hangs takes only this process with it. It answers one job at a time, over a pipe, to
the `Worker` that started it, and never reads or writes anything else.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from triton.runtime.cache import triton_key

from workbench.bench.gpu import Ceilings, driver_version, measure_ceilings
from workbench.errors import WorkbenchError
from workbench.kernels.launch import INTERPRETED
from workbench.playground import jobs
from workbench.playground.checking import check_case
from workbench.playground.compiling import compile_here
from workbench.playground.subject import Subject
from workbench.playground.trials import Rig, failure


class Server:
    """Answers jobs; keeps the rig of the last subject, and this GPU's ceilings."""

    def __init__(self) -> None:
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", 0) if cuda else torch.device("cpu")
        self._rig: Rig | None = None
        self._ceilings: Ceilings | None = None

    def rig(self, subject: Subject) -> Rig:
        """Return the subject's rig; the former one gives its memory back."""
        if self._rig is None or self._rig.subject != subject:
            self.drop()
            self._rig = Rig(subject, self.device)
        return self._rig

    def drop(self) -> None:
        """Give the rig's memory back."""
        if self._rig is not None:
            self._rig.close()
            self._rig = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def answer(self, job: Any) -> Any:
        """Do a job and return what it asks for; see `jobs`."""
        match job:
            case jobs.Prepare(subject):
                return {**self.rig(subject).facts(), **self._machine()}
            case jobs.Try(subject, config, seconds, ahead):
                trial = self.rig(subject).try_config(config, seconds=seconds, ahead=ahead)
                if trial.status == "wrong":
                    self.drop()  # it may have written anywhere, also over what is expected
                return trial
            case jobs.Finals(subject, configs, seconds):
                return self.rig(subject).finals(configs, seconds)
            case jobs.Against(subject, seconds):
                rig, current = self.rig(subject), replace(subject, source=None)
                return rig.against(Rig(current, self.device), seconds)
            case jobs.Check(subject):
                dtype = subject.torch_dtype
                return check_case(subject.spec, subject.case, dtype, self.device, subject.seed)
            case jobs.Compile(subject, config, target):
                return compile_here(subject, config, target)
        raise AssertionError(f"no such job: {job}")

    def _machine(self) -> dict[str, Any]:
        import triton

        found: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__}
        if self.device.type != "cuda":
            return {**found, "device": "cpu", "target": None}
        if self._ceilings is None:
            self._ceilings = measure_ceilings(self.device)
            torch.cuda.empty_cache()
        limits = self._ceilings
        major, minor = torch.cuda.get_device_capability(self.device)
        return {
            **found,
            "device": torch.cuda.get_device_name(self.device),
            "driver": driver_version(),
            "target": f"cuda:{10 * major + minor}",
            "ceilings": {"copy": limits.copy, "read": limits.read, "gemm": limits.gemm},
        }


def main(descriptor: int) -> None:
    """Serve jobs from the connection until the other side closes it."""
    client = Connection(descriptor)
    server = Server()
    # Triton's first compilation reads all of Triton, to know what its cache is of.
    hashing = threading.Thread(target=triton_key, daemon=True)
    if not INTERPRETED:
        hashing.start()
    client.send(None)  # ready
    while True:
        try:
            job = client.recv()
        except (EOFError, ConnectionResetError):
            os._exit(0)  # at once: threads may still be compiling
        if not INTERPRETED:
            hashing.join()
        try:
            reply = server.answer(job)
        except WorkbenchError as error:
            reply = error
        except Exception as error:  # noqa: BLE001 - the other side raises it, with its words
            reply = jobs.Failed(*failure(error))
        client.send(reply)
        if getattr(reply, "status", "") == "crashed":
            os._exit(1)  # a GPU's context is lost with its first fault


if __name__ == "__main__":
    main(int(sys.argv[1]))
