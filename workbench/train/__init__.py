"""Programs that train what ships under `adapters/`: the base model, and what attaches to it.

Called from the command line (`workbench train …`); nothing in the engine imports this folder. They
use transformers' own model classes, so that a checkpoint is in the Hugging Face layout by design.
"""
