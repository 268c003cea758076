"""The paper's experiment: pruning, Tucker decomposition, and both, at similar accuracy. `make paper`."""
