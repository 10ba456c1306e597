"""What a gradient-based attacker sees in an image classifier, and whether its robustness is real."""

__version__ = "0.1.0"
