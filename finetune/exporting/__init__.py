"""From a trained classifier to one file for inference, in the formats of others."""
