"""Everything that knows torch.fx: clones, traces, levels and the draft that edits them."""
