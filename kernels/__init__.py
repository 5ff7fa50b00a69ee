"""Triton kernels, one file each: torch reference, kernel, launcher, input maker and tuning space.

Imported only as `workbench.kernels`, through the symlink `workbench/kernels`; never as `kernels`,
which is a third-party library's name. `workbench.ops` is the one caller. Nothing here knows of
sequences, caches or engines: a kernel sees tensors alone. This file imports no triton, which not
every platform has: `workbench.kernels.registry.SPECS` names every kernel.
"""
