"""Small data files, the corpus, and the programs that make and read them.

Called by the training programs (floor 7), the benches and the notebooks. Nothing here imports
torch: a corpus, a tokenizer and a prompt suite can be made wherever there is Python source.
"""
