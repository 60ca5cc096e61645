"""Weights that come with cubeclf; `cubeclf_core.zoo` finds them by name."""
