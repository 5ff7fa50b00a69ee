"""What this machine has: processor, memory, GPUs, packages, tools.

Read by `workbench doctor` from files and commands of the system, without importing torch unless a
GPU is there to be tried. Each reader returns None or an empty list for what is absent, and changes
nothing.
"""
