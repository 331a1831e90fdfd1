"""THE OBJECTIVE: where batches come from, and a loss over them."""
