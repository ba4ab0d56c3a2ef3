"""How good a representation is: tagging metrics, frozen probes, domain shift. Plain NumPy arrays in and out."""
