"""A backbone and labels to a classifier: data, training, export, classification."""
