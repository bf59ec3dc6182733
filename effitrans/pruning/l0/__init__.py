"""Learned hard-concrete gates with a sparsity target. `L0Pruning` asks for it; `prune(model, L0Pruning(...), data)`."""
