"""vLLM in place of transformers: its engine runs the prompts, a connector of ours takes the wanted states out of it.

vLLM's ``extract_hidden_states`` puts the residual stream at the wanted points into a cache beside its keys and values,
paged as they are, so that a prompt's states are together when the last of its pieces has run. At that moment the
connector reads the rows that the selectors want, and nothing else, and hands them to the run as the transformers
backend hands over its own: from there on, copies, ranges and commits are the same code.
"""
