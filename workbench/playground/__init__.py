"""The kernel playground without a notebook: compile, check, time and search the kernels' spaces.

`cross_compile` shows what a compiler made of a configuration, for any GPU; `tune` searches a
kernel's space in worker processes; `check_kernel` holds a kernel written in a cell to its
reference. The panel is `workbench.views.KernelPlayground`, the program `workbench tune`.
"""
